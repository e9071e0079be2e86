//! The app's interim responses, such as `103 Early Hints`, on their way to the client.

use std::sync::{Mutex, PoisonError};

use http::{Request, StatusCode};
use tokio::sync::oneshot;
use warmhop::Interim;

/// Passes on the interim responses to a request that hyper sends over HTTP/1.1, and reports the
/// first `100 Continue`.
pub(super) fn pass_on<B>(
    request: &mut Request<B>,
    interim: Option<Interim>,
    continues: Option<oneshot::Sender<()>>,
) {
    if interim.is_none() && continues.is_none() {
        return;
    }
    let continues = Mutex::new(continues);
    hyper::ext::on_informational(request, move |response| {
        if response.status() == StatusCode::CONTINUE {
            let waits = continues.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(waits) = waits {
                let _ = waits.send(());
            }
        } else if let Some(interim) = &interim {
            // One that finds no room is dropped.
            let _ = interim.send(response.status(), response.headers());
        }
    });
}
