//! Gives free memory back to the system.
//!
//! The allocator returns pages some time after they became free, but looks for them only when its
//! thread allocates: an idle peer would keep the memory that an attack made it use. So each thread
//! allocates a little from time to time.

use std::hint::black_box;
use std::time::Duration;

use tokio::time::sleep;

/// How often a thread does that.
const EVERY: Duration = Duration::from_secs(2);
/// So many small pieces take the allocator off its fast path, on which it does not look for free
/// pages.
const PIECES: usize = 2_000;

/// Makes the allocator of this thread give back free memory, for as long as it is polled.
pub(crate) async fn gives_back() {
    loop {
        sleep(EVERY).await;
        // Debug builds have another allocator, which counts allocations.
        if !cfg!(debug_assertions) {
            drop(black_box((0..PIECES).map(|_| Box::new([0_u8; 200])).collect::<Vec<_>>()));
        }
    }
}
