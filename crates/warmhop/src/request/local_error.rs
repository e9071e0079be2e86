//! Why an app on this peer gave no response, and the problem that its client gets.

use warmhop_core::problem::ProblemKind;
use warmhop_core::session::message::ExecDone;

use crate::request::problem::{Problem, too_slow};

/// Why an app on this peer gave no response.
pub(crate) enum LocalError {
    /// It is not ready (any more); it has not seen the request.
    NotReady,
    /// Every place is taken; it has not seen the request.
    Busy,
    /// It is older than the request requires; it has not seen the request.
    Older,
    /// It took the request and did not answer in time, or was ended because it hung.
    TooSlow(String),
    /// It took the request and failed.
    Failed(String),
    /// Its part in the session was refused; it has not seen the request.
    Refused(ExecDone),
    /// The request's body was sent elsewhere already.
    BodyGone,
    /// The client gets this problem.
    Problem(Box<Problem>),
}

/// The client's problem.
pub(crate) fn app_failed(peer: &str, error: &LocalError) -> Problem {
    let failed = |detail: String| Problem::new(ProblemKind::AppFailed, detail);
    let detail = match error {
        LocalError::Failed(why) => {
            return failed(format!("the app on {peer} failed to answer")).because(why);
        }
        LocalError::TooSlow(detail) => return too_slow(peer, detail),
        LocalError::NotReady => format!("the app on {peer} is not ready"),
        LocalError::Older => format!("the app on {peer} is of an older version"),
        LocalError::Busy => format!("the app on {peer} serves as many requests as it may"),
        LocalError::Refused(_) => format!("the session was refused on {peer}"),
        LocalError::Problem(problem) => return (**problem).clone(),
        LocalError::BodyGone => "the request's body cannot be sent again".into(),
    };
    failed(detail)
}

/// An error and its whole chain of sources, as one text.
pub(crate) fn error_chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    text
}
