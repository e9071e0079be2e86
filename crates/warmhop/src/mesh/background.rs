//! A peer's background tasks, until it ends.

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::mesh::shutdown;

#[derive(Clone, Default)]
pub(crate) struct Background {
    tasks: TaskTracker,
    closing: CancellationToken,
}

impl Background {
    /// Runs a task until it has ended, or the peer ends.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let closing = self.closing.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = task => {}
                () = closing.cancelled() => {}
            }
        });
    }

    /// Stops all of them.
    pub(crate) fn stop(&self) {
        self.closing.cancel();
    }

    /// Stops all of them and waits for their end, within bounds.
    pub(crate) async fn end(&self) {
        self.stop();
        self.tasks.close();
        shutdown::wait_for(&self.tasks).await;
    }
}
