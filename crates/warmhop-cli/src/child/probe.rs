//! Probes whether a child is ready, and later whether it is alive.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::header::{HOST, HeaderValue, USER_AGENT};
use http::{Request, StatusCode};
use tokio::time::{sleep, timeout};
use tower::Service;
use warmhop::{Answer, Body, NotSent};

use super::service::ChildService;

/// An app that starts may have so many open probes: the first may be the one that it answers,
/// however slowly.
const OPEN_MAX: usize = 4;
/// How long a later probe stays open, as a multiple of [`Probe::timeout`]. Then another one gets its
/// place: an app may never answer what it accepted while it was stuck.
const LATER_STAYS: u32 = 3;
/// Readiness is probed this often at first, then ever more rarely …
const INTERVAL_FIRST: Duration = Duration::from_millis(10);

/// A probe, and which answers are good.
#[derive(Debug, Clone)]
pub(super) struct Probe {
    pub(super) port: u16,
    /// The path that has to answer; absent: a TCP connect is enough.
    pub(super) path: Option<String>,
    /// The `Host` field; absent: the address itself.
    pub(super) host: Option<String>,
    /// The statuses that count; none: 2xx and 3xx.
    pub(super) status: Vec<u16>,
    /// How long one answer may take.
    pub(super) timeout: Duration,
}

/// What came of the latest probe of an app that starts.
#[derive(Debug, Default)]
pub(super) struct Latest(Mutex<Option<(Answer, Means)>>);

/// What an answer that is not good means for a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Means {
    /// It may become good by itself.
    NotYet,
    /// The app rejects the probe itself, whose path or host may be wrong.
    Rejected,
}

impl Latest {
    fn put(&self, latest: (Answer, Means)) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(latest);
    }

    /// In words.
    pub(super) fn came(&self) -> Option<String> {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some((Answer::Unwell(came) | Answer::Silent(came), _)) => Some(came.clone()),
            _ => None,
        }
    }

    /// The same, if the app rejects the probe.
    pub(super) fn rejection(&self) -> Option<String> {
        let latest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_rejection = latest.as_ref().is_some_and(|(_, means)| *means == Means::Rejected);
        drop(latest);
        self.came().filter(|_| is_rejection)
    }
}

impl Probe {
    /// Probes once.
    pub(super) async fn ask(&self, service: &ChildService) -> Answer {
        match timeout(self.timeout, self.answer(service)).await {
            Ok(answer) => answer,
            Err(_) => Answer::Silent(format!("{} within {:?}", self.no_answer(), self.timeout)),
        }
    }

    /// Probes until there is a good answer, every `every` once the first moments are over. A slow
    /// answer counts, too: the oldest probe that the app has accepted waits for it to the end. `last` gets the
    /// latest outcome.
    pub(super) async fn until_ready(&self, service: &ChildService, every: Duration, last: &Latest) {
        let mut open = FuturesUnordered::new();
        let mut interval = INTERVAL_FIRST.min(every);
        let mut pause = Duration::ZERO;
        let mut one_waits = false;
        loop {
            if open.len() < OPEN_MAX {
                // Most of the first ones are refused, since the app does not listen yet.
                let waits = !std::mem::replace(&mut one_waits, true);
                let stays = if waits { Duration::MAX } else { self.later_stays() };
                let after = pause;
                open.push(async move {
                    sleep(after).await;
                    let answer = timeout(stays, self.outcome(service)).await;
                    (answer.unwrap_or_else(|_| self.silence()), waits)
                });
            }
            match timeout(pause + self.timeout, open.next()).await {
                Ok(Some(((Answer::Well, _), _))) => return,
                Ok(Some((came, waited))) => {
                    one_waits &= !waited;
                    last.put(came);
                }
                Ok(None) => {}
                Err(_) => last.put(self.silence()),
            }
            pause = interval;
            interval = (interval * 3 / 2).min(every);
        }
    }

    fn later_stays(&self) -> Duration {
        self.timeout.saturating_mul(LATER_STAYS)
    }

    fn silence(&self) -> (Answer, Means) {
        (Answer::Silent(self.no_answer()), Means::NotYet)
    }

    async fn answer(&self, service: &ChildService) -> Answer {
        self.outcome(service).await.0
    }

    async fn outcome(&self, service: &ChildService) -> (Answer, Means) {
        let mut means = Means::NotYet;
        let answer = self.answer_and(service, &mut means).await;
        (answer, means)
    }

    async fn answer_and(&self, service: &ChildService, means: &mut Means) -> Answer {
        let Some(path) = &self.path else {
            let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
            return match tokio::net::TcpStream::connect(addr).await {
                Ok(_) => Answer::Well,
                Err(error) => Answer::Silent(format!("connecting to {addr} failed: {error}")),
            };
        };
        let mut request = Request::get(path)
            .header(USER_AGENT, concat!("warmhop-readiness/", env!("CARGO_PKG_VERSION")));
        if let Some(host) = self.host.as_deref().and_then(|host| HeaderValue::from_str(host).ok()) {
            request = request.header(HOST, host);
        }
        let Ok(request) = request.body(Body::empty()) else {
            return Answer::Silent(format!("{path} is no path"));
        };
        match service.clone().call(request).await {
            Ok(response) if self.is_good(response.status()) => Answer::Well,
            Ok(response) => {
                if response.status().is_client_error() {
                    *means = Means::Rejected;
                }
                Answer::Unwell(format!("{} answered {}", self.what(), response.status().as_u16()))
            }
            Err(error) if error.is::<NotSent>() => Answer::Silent(error.to_string()),
            Err(error) if is_malformed(&*error) => {
                let what = self.what();
                Answer::Unwell(format!(
                    "{what} was answered by something that is not HTTP: {error}"
                ))
            }
            Err(error) => Answer::Silent(format!("{}: {error}", self.no_answer())),
        }
    }

    fn is_good(&self, status: StatusCode) -> bool {
        if self.status.is_empty() {
            return status.is_success() || status.is_redirection();
        }
        self.status.contains(&status.as_u16())
    }

    fn what(&self) -> String {
        let (port, path) = (self.port, self.path.as_deref().unwrap_or("/"));
        match &self.host {
            Some(host) => format!("GET http://127.0.0.1:{port}{path} with Host: {host}"),
            None => format!("GET http://127.0.0.1:{port}{path}"),
        }
    }

    fn no_answer(&self) -> String {
        match self.path {
            Some(_) => format!("{} was not answered", self.what()),
            None => format!("127.0.0.1:{} did not accept a connection", self.port),
        }
    }

    /// What the probe requires, as text.
    pub(super) fn wanted(&self) -> String {
        match (&self.path, self.status.as_slice()) {
            (None, _) => "it has to listen on 127.0.0.1:$PORT, as its environment says".into(),
            (Some(_), []) => "2xx or 3xx is needed".into(),
            (Some(_), wanted) => {
                let wanted: Vec<String> = wanted.iter().map(u16::to_string).collect();
                format!("{} is needed", wanted.join(" or "))
            }
        }
    }
}

/// Whether an answer came that is not HTTP, rather than no answer.
fn is_malformed(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse) {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::child::launch::Protocol;

    /// What comes of asking an app that answers so, and then closes.
    async fn asked(answer: &'static str) -> Answer {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = [0; 1024];
            let _ = stream.read(&mut head).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        });
        let (path, timeout) = (Some("/healthz".to_owned()), Duration::from_secs(20));
        let probe = Probe { port, path, host: None, status: Vec::new(), timeout };
        probe.ask(&ChildService::new(port, Protocol::Http1)).await
    }

    /// An app that accepts its first probes and leaves them without an answer, for ever.
    #[tokio::test]
    async fn an_app_that_forgets_its_first_probes_is_asked_again() {
        const FORGOTTEN: usize = 7;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let mut forgotten = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                if forgotten.len() < FORGOTTEN {
                    forgotten.push(stream);
                    continue;
                }
                tokio::spawn(async move {
                    let mut head = [0; 1024];
                    let _ = stream.read(&mut head).await;
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
                    // It waits for the other end, which may read the answer first.
                    let _ = stream.read(&mut head).await;
                });
            }
        });
        let (path, short) = (Some("/".to_owned()), Duration::from_millis(50));
        let probe = Probe { port, path, host: None, status: Vec::new(), timeout: short };
        let service = ChildService::new(port, Protocol::Http1);
        let last = Latest::default();
        let asking = probe.until_ready(&service, short, &last);
        timeout(Duration::from_secs(60), asking).await.expect("it would answer another probe");
        assert!(
            last.came().unwrap().contains("was not answered"),
            "the last answer is in the error"
        );
    }

    /// An app that listens late, and takes much longer for each answer than a probe is waited for.
    #[tokio::test]
    async fn a_slow_answer_counts_although_the_first_probes_were_refused() {
        let reserved = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = reserved.local_addr().unwrap().port();
        drop(reserved);
        tokio::spawn(async move {
            sleep(Duration::from_millis(100)).await;
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.unwrap();
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut head = [0; 1024];
                    let _ = stream.read(&mut head).await;
                    sleep(Duration::from_secs(1)).await;
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
                    let _ = stream.read(&mut head).await;
                });
            }
        });
        let (path, short) = (Some("/".to_owned()), Duration::from_millis(50));
        let probe = Probe { port, path, host: None, status: Vec::new(), timeout: short };
        let service = ChildService::new(port, Protocol::Http1);
        let last = Latest::default();
        let asking = probe.until_ready(&service, short, &last);
        timeout(Duration::from_secs(60), asking).await.expect("its first answer counts");
    }

    #[test]
    fn only_an_app_that_rejects_the_probe_is_said_to() {
        let last = Latest::default();
        assert_eq!(last.rejection(), None);
        for (means, rejection) in [(Means::NotYet, None), (Means::Rejected, Some("no".to_owned()))]
        {
            last.put((Answer::Unwell("no".into()), means));
            assert_eq!(last.rejection(), rejection);
        }
    }

    #[tokio::test]
    async fn an_answer_that_is_not_http_makes_a_copy_unwell_and_not_silent() {
        for garbage in ["what is this?\r\n\r\n", "HTTP/9.9 200 OK\r\n\r\n", "HTTP/1.1 2x0\r\n\r\n"]
        {
            let Answer::Unwell(said) = asked(garbage).await else { panic!("{garbage}") };
            let expected = "/healthz was answered by something that is not HTTP: ";
            assert!(said.contains(expected), "{said}");
        }
        let Answer::Silent(said) = asked("").await else { panic!("nothing came") };
        assert!(said.contains("/healthz was not answered"), "{said}");
        let well = asked("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        assert_eq!(well, Answer::Well);
    }
}
