//! The words in which people read about an app's life.

use core::fmt;

use super::NotStarted;

impl fmt::Display for NotStarted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Never => f.write_str(
                "this peer is configured never to run the app; start it on another peer, or change \
                 the configuration here",
            ),
            Self::Draining => f.write_str("this peer is draining; start the app on another peer"),
            Self::Paused => f.write_str(
                "it is paused here until an operator resumes it; resume it, or start it on another \
                 peer",
            ),
            Self::NotAtBoot => f.write_str("the app does not start with the peer"),
            Self::BackingOff(left) => write!(
                f,
                "its last start failed; the next begins in {left:?}, or at once if an operator \
                 starts it"
            ),
            Self::Unwell => f.write_str(
                "its copy here runs, but its health check fails; it is in service again once the \
                 check succeeds, or once an operator starts another copy",
            ),
            Self::UnderWay => f.write_str("it is ready here, or starting"),
        }
    }
}
