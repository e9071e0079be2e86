//! Gives memory that is free back to the system.
//!
//! The allocator returns pages a while after they became free, but looks for them only when its
//! thread allocates: a peer that nobody asks any more would keep what an attack had it hold. So each
//! thread allocates a little from time to time.

use std::hint::black_box;
use std::time::Duration;

use tokio::time::sleep;

/// How often a thread looks.
const EVERY: Duration = Duration::from_secs(2);
/// So many small pieces take the allocator off its shortest way, on which it looks for nothing.
const PIECES: usize = 2_000;

/// Has the allocator of this thread give back what is free, for as long as it is polled.
pub(crate) async fn gives_back() {
    loop {
        sleep(EVERY).await;
        // Debug builds have another allocator, and count what is allocated.
        if !cfg!(debug_assertions) {
            drop(black_box((0..PIECES).map(|_| Box::new([0_u8; 200])).collect::<Vec<_>>()));
        }
    }
}
