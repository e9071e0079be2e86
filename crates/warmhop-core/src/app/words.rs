//! The words in which people read about an app's life.

use core::fmt;

use super::NotStarted;

impl fmt::Display for NotStarted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Never => f.write_str(
                "start = \"never\" declares this peer unfit to run the app; start it on another \
                 peer, or change its configuration here",
            ),
            Self::Draining => f.write_str("this peer is draining; start the app on another peer"),
            Self::Paused => f.write_str(
                "it is paused here; `warmhop app resume` lets it start again, or start it on \
                 another peer",
            ),
            Self::NotAtBoot => f.write_str("the app does not start with the peer"),
            Self::BackingOff(left) => write!(
                f,
                "its last start failed; the next begins in {left:?}, or at once with \
                 `warmhop app start`"
            ),
            Self::Unwell => f.write_str(
                "its copy here runs, but says that it cannot serve; it is back once it says \
                 otherwise, or start another with `warmhop app start`",
            ),
            Self::UnderWay => f.write_str("it is ready here, or starting"),
        }
    }
}
