//! Links `warmhop-core` into a program that has no std. Were anything that it depends on to pull
//! std in, the build would fail: std brings a panic handler of its own, and there must be one.
//!
//! A bare target such as `thumbv7em-none-eabi` would prove the same, but has to be installed
//! first. The program is for Linux and the like, where the C runtime calls `main`.
//!
//! The workspace forbids `unsafe`; this package is outside it, because an entry point under a C
//! name and a global allocator cannot be written without. Nothing of it is shipped.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::vec::Vec;
use core::alloc::{GlobalAlloc, Layout};
use core::ffi::c_int;
use core::panic::PanicInfo;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicUsize, Ordering};

use warmhop_core::affinity::{self, Authenticator};
use warmhop_core::app::{AppEvent, AppMachine, WantedBy};
use warmhop_core::config::AppPolicy;
use warmhop_core::ids::{AppName, Now, PeerId};
use warmhop_core::rank::keepers;
use warmhop_core::route::{Arrived, LocalApp, Question, Queued, Versions, decide};
use warmhop_core::view::{AppState, View};

// Only what std would have brought: the C runtime, for an entry point and for its own needs.
#[link(name = "c")]
unsafe extern "C" {
    fn abort() -> !;
}

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    // SAFETY: the C function takes nothing and does not return.
    unsafe { abort() }
}

// The library `alloc` comes compiled for unwinding, and names what unwinding needs. With
// `panic = "abort"` neither is ever called.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    // SAFETY: the C function takes nothing and does not return.
    unsafe { abort() }
}

const ARENA_BYTES: usize = 1 << 20;

/// Hands out an arena from front to back and takes nothing back: the program is short.
#[repr(align(16))]
struct Arena(core::cell::UnsafeCell<[u8; ARENA_BYTES]>);

// SAFETY: each byte is handed out once, by an atomic cursor.
unsafe impl Sync for Arena {}

static ARENA: Arena = Arena(core::cell::UnsafeCell::new([0; ARENA_BYTES]));
static USED: AtomicUsize = AtomicUsize::new(0);

struct Bump;

// SAFETY: what is returned lies within the arena, is aligned, and overlaps nothing returned before;
// where that cannot be, null is returned.
unsafe impl GlobalAlloc for Bump {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.align() > 16 {
            return null_mut();
        }
        let bytes = layout.size().next_multiple_of(16);
        let start = USED.fetch_add(bytes, Ordering::Relaxed);
        if start.saturating_add(bytes) > ARENA_BYTES {
            return null_mut();
        }
        // SAFETY: `start + bytes` lies within the arena.
        unsafe { ARENA.0.get().cast::<u8>().add(start) }
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}

#[global_allocator]
static ALLOCATOR: Bump = Bump;

/// No secret, and no use beyond this program.
struct Sum;

impl Authenticator for Sum {
    fn tag(&self, bytes: &[u8]) -> [u8; 16] {
        [bytes.iter().fold(0, |sum, byte| sum ^ byte); 16]
    }

    fn verify(&self, bytes: &[u8], tag: &[u8; 16]) -> bool {
        self.tag(bytes) == *tag
    }
}

/// Uses a little of every module, so that the linker has something to link. Exits 0 if the
/// decisions are those expected.
#[unsafe(no_mangle)]
pub extern "C" fn main(_: c_int, _: *const *const u8) -> c_int {
    let (Ok(me), Ok(shop)) = (PeerId::new("me"), AppName::new("shop")) else { return 1 };
    let policy = AppPolicy::default();
    let mut machine = AppMachine::new(policy.clone(), 7);
    let effects = machine.on(AppEvent::Wanted(WantedBy::Request), Now(0), 0);
    let view = View::new(me.clone());
    let local = LocalApp {
        state: machine.state(),
        in_flight: 0,
        eta: None,
        waiting: 0,
        awaiting: 0,
        latency_us: 0,
        starts_in: None,
        shut: false,
    };
    let question = Question {
        app: &policy,
        local,
        draining: false,
        zone: None,
        candidates: &[],
        arrived: Arrived::AtFrontDoor,
        affinity: None,
        tried: &[],
        attempt_budget: 2,
        waited: core::time::Duration::ZERO,
        queued: Queued::default(),
        never_wakes: false,
        failed_starts: 0,
        failed_elsewhere: 0,
        versions: Versions::default(),
        dice: 0,
    };
    let decision = decide(&question);
    let keeper: Vec<PeerId> = keepers(&shop, [&me], 1);
    let value = affinity::mint(&affinity::Token::default(), &me, &Sum);
    let read = affinity::read(&value, &Sum, warmhop_core::ids::WallTime(0));
    let as_expected = effects.len() == 2
        && machine.state() == AppState::Starting
        && view.peers().next().is_none()
        && decision.reason.label() == "starting_here"
        && keeper == [me]
        && read.is_err();
    c_int::from(!as_expected)
}
