//! Why a TLS handshake failed, in few enough kinds for a counter's label.

use std::io;

use quinn::ConnectionError;
use rustls::{AlertDescription, CertificateError, Error, PeerIncompatible};

/// The first TLS alert (RFC 8446 section 6) among QUIC's transport errors (RFC 9001 section 4.8).
const FIRST_ALERT: u64 = 0x100;

/// Why a handshake that the other end began failed here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HandshakeFailure {
    /// The other end does not speak TLS.
    NotTls,
    /// The two ends have no version of TLS in common.
    Version,
    /// The two ends have no cipher in common.
    Cipher,
    /// The two ends have no protocol in common (ALPN).
    Protocol,
    /// The other end showed no certificate, or one that is not accepted here.
    Certificate,
    /// A certificate has expired, or the clocks of both differ.
    Expired,
    /// The other end does not accept the certificate of this one.
    Refused,
    /// It took too long.
    TimedOut,
    /// The other end left.
    Left,
    /// Anything else.
    Other,
}

impl HandshakeFailure {
    /// All of them, in their order.
    pub(crate) const ALL: [Self; 10] = [
        Self::NotTls,
        Self::Version,
        Self::Cipher,
        Self::Protocol,
        Self::Certificate,
        Self::Expired,
        Self::Refused,
        Self::TimedOut,
        Self::Left,
        Self::Other,
    ];

    /// A stable name for counters.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::NotTls => "not-tls",
            Self::Version => "version",
            Self::Cipher => "cipher",
            Self::Protocol => "protocol",
            Self::Certificate => "certificate",
            Self::Expired => "expired",
            Self::Refused => "refused",
            Self::TimedOut => "timed-out",
            Self::Left => "left",
            Self::Other => "other",
        }
    }

    /// What happened at a front door and what to do next, for the log; `None` where it concerns the
    /// client alone.
    pub(crate) fn at_front_door(self) -> Option<&'static str> {
        Some(match self {
            Self::NotTls => {
                "a client spoke no TLS to a front door that has TLS: ask it by https://"
            }
            Self::Version => {
                "a client speaks no version of TLS that the front door has, which are 1.2 and 1.3"
            }
            Self::Cipher => "a client and the front door have no ciphers of TLS in common",
            Self::Protocol => "a client wants another protocol than h2 or http/1.1 (ALPN)",
            Self::Expired => {
                "a client says that the front door's certificate has expired: renew it, or set the \
                 client's clock"
            }
            Self::Refused => {
                "a client does not accept the front door's certificate: it has to name the host that \
                 clients ask for, with its whole chain, and clients have to trust its authority"
            }
            Self::Certificate | Self::TimedOut | Self::Left | Self::Other => return None,
        })
    }

    /// Classifies the error of a handshake over TCP.
    pub(crate) fn of_tls(error: &io::Error) -> Self {
        if let Some(error) = error.get_ref().and_then(|error| error.downcast_ref::<Error>()) {
            return Self::of_rustls(error);
        }
        match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe => Self::Left,
            io::ErrorKind::TimedOut => Self::TimedOut,
            _ => Self::Other,
        }
    }

    fn of_rustls(error: &Error) -> Self {
        match error {
            Error::InvalidMessage(_) => Self::NotTls,
            Error::AlertReceived(alert) => Self::of_alert(*alert, true),
            Error::NoApplicationProtocol => Self::Protocol,
            Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. },
            ) => Self::Expired,
            Error::InvalidCertificate(_) | Error::NoCertificatesPresented => Self::Certificate,
            Error::PeerIncompatible(
                PeerIncompatible::NoCipherSuitesInCommon
                | PeerIncompatible::NoKxGroupsInCommon
                | PeerIncompatible::NoSignatureSchemesInCommon
                | PeerIncompatible::NoEcPointFormatsInCommon,
            ) => Self::Cipher,
            Error::PeerIncompatible(_) => Self::Version,
            _ => Self::Other,
        }
    }

    /// Classifies the error of a handshake over QUIC.
    pub(crate) fn of_quic(error: &ConnectionError) -> Self {
        let alert = |code: u64| u8::try_from(code.checked_sub(FIRST_ALERT)?).ok();
        let (code, by_other) = match error {
            ConnectionError::TimedOut => return Self::TimedOut,
            ConnectionError::Reset | ConnectionError::ApplicationClosed(_) => return Self::Left,
            ConnectionError::VersionMismatch => return Self::Version,
            ConnectionError::TransportError(error) => (u64::from(error.code), false),
            ConnectionError::ConnectionClosed(close) => (u64::from(close.error_code), true),
            _ => return Self::Other,
        };
        alert(code).map_or(Self::Other, |alert| Self::of_alert(alert.into(), by_other))
    }

    fn of_alert(alert: AlertDescription, by_other: bool) -> Self {
        match alert {
            AlertDescription::CertificateExpired => Self::Expired,
            AlertDescription::NoCertificate
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            // A signature does not verify: two authorities have the same name.
            | AlertDescription::DecryptError
            | AlertDescription::CertificateRequired => {
                if by_other { Self::Refused } else { Self::Certificate }
            }
            AlertDescription::ProtocolVersion => Self::Version,
            AlertDescription::HandshakeFailure | AlertDescription::InsufficientSecurity => {
                Self::Cipher
            }
            AlertDescription::NoApplicationProtocol => Self::Protocol,
            AlertDescription::CloseNotify | AlertDescription::UserCanceled => Self::Left,
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_classified_by_what_to_do_about_it() {
        use HandshakeFailure as Failure;
        let tls = |error: Error| {
            Failure::of_tls(&io::Error::new(io::ErrorKind::InvalidData, error)).label()
        };
        for (error, label) in [
            (Error::AlertReceived(AlertDescription::UnknownCA), "refused"),
            (Error::AlertReceived(AlertDescription::CertificateExpired), "expired"),
            (Error::AlertReceived(AlertDescription::ProtocolVersion), "version"),
            (Error::InvalidCertificate(CertificateError::Expired), "expired"),
            (Error::InvalidCertificate(CertificateError::UnknownIssuer), "certificate"),
            (Error::NoCertificatesPresented, "certificate"),
            (Error::NoApplicationProtocol, "protocol"),
            (Error::PeerIncompatible(PeerIncompatible::NoCipherSuitesInCommon), "cipher"),
            (Error::PeerIncompatible(PeerIncompatible::Tls13RequiredForQuic), "version"),
            (Error::DecryptError, "other"),
        ] {
            assert_eq!(tls(error.clone()), label, "{error:?}");
        }
        let left = io::Error::from(io::ErrorKind::UnexpectedEof);
        assert_eq!(Failure::of_tls(&left), Failure::Left);
        assert_eq!(Failure::of_quic(&ConnectionError::TimedOut), Failure::TimedOut);
        for (at, failure) in Failure::ALL.into_iter().enumerate() {
            assert_eq!(failure as usize, at);
        }
    }
}
