//! Inputs for the harnesses: words of a dictionary, strung together, with a few bytes changed. The
//! same seed makes the same input, so that a failing one can be fed again.
//!
//! `cargo test` feeds a fixed number of inputs. `fuzz/run` sets `FUZZ_SECONDS`, and feeds each
//! harness for so long, and with no fewer inputs, from a seed of its own, which is printed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How many inputs are fed before the clock is read.
const AT_ONCE: u64 = 64;

/// Feeds a harness with inputs of `make`, `usual` times and for `FUZZ_SECONDS`; returns the sum of
/// its results.
///
/// # Panics
/// With the input, if the harness panics.
pub(crate) fn feed(
    name: &str,
    usual: u64,
    mut make: impl FnMut(&mut Numbers) -> Vec<u8>,
    harness: impl Fn(&[u8]) -> usize,
) -> usize {
    let seconds = std::env::var("FUZZ_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    let until = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seed = if until.is_some() { u64::from(now.subsec_nanos()) + now.as_secs() } else { 1 };
    let mut numbers = Numbers::new(seed);
    let (mut fed, mut sum) = (0, 0);
    while fed < usual || until.is_some_and(|until| fed % AT_ONCE != 0 || Instant::now() < until) {
        let input = make(&mut numbers);
        let result = catch_unwind(AssertUnwindSafe(|| harness(&input)));
        let what = || format!("{name}, seed {seed}, fed \"{}\"", input.escape_ascii());
        sum += result.unwrap_or_else(|_| panic!("{}", what()));
        fed += 1;
    }
    if until.is_some() {
        eprintln!("{name}: {fed} inputs, seed {seed}, 0 panics");
    }
    sum
}

/// A small generator (xorshift64*); how good its numbers are does not matter here.
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % end.max(1)
    }
}

/// Up to `words_max` words of `dictionary`; every other time some of the bytes are changed.
pub(crate) fn strung(numbers: &mut Numbers, dictionary: &[&[u8]], words_max: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..=numbers.below(words_max) {
        bytes.extend_from_slice(dictionary[numbers.below(dictionary.len())]);
    }
    if numbers.below(2) == 0 {
        for _ in 0..=numbers.below(3) {
            change(numbers, &mut bytes);
        }
    }
    bytes
}

fn change(numbers: &mut Numbers, bytes: &mut Vec<u8>) {
    const ODD: &[u8] = b"\r\n\t :;,0\0\xff";
    if bytes.is_empty() {
        return;
    }
    let at = numbers.below(bytes.len());
    let odd = ODD[numbers.below(ODD.len())];
    match numbers.below(3) {
        0 => bytes[at] = odd,
        1 => bytes.insert(at, odd),
        _ => drop(bytes.remove(at)),
    }
}
