//! The loop of the live view: asks the peer, reads the keys, and draws pictures of both.

use std::future::{Future, pending};
use std::io::{self, IsTerminal, Stdout, Write};
use std::ops::ControlFlow;
use std::panic;
use std::pin::{Pin, pin};
use std::time::{Duration, Instant, SystemTime};

use http::Method;
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::event::{self, Event};
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use ratatui::crossterm::{cursor, execute};
use serde_json::Value;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior, interval};
use warmhop::status::{History, RequestTrace, Status};

use super::board::Board;
use super::frame::Scene;
use super::traffic::Traffic;
use super::{Recent, Watch};
use crate::failure::Failure;
use crate::host::log;
use crate::operate::client::{Admin, AskError, encoded};

/// How often the peer is asked.
const EVERY: Duration = Duration::from_secs(1);
/// How often the last minutes are asked for, which each peer counts in intervals of ten seconds.
const HISTORY_EVERY: Duration = Duration::from_secs(5);
/// How many peers are asked for them.
const HISTORIES_MAX: usize = 32;
/// How long an answer may take before the peer is shown as silent.
const MISSED_AFTER: Duration = Duration::from_secs(2);
/// Keys that are queued until a picture is drawn; further keys wait.
const KEYS_MAX: usize = 64;

/// Shows the peer's answers, again and again, until the user ends it. It waits for a peer that is
/// away for a while: users watch restarts, too.
///
/// # Errors
/// If nothing can be shown.
pub async fn run(admin: &Admin, json: bool) -> Result<u8, Failure> {
    if io::stdout().is_terminal() && !json {
        on_screen(admin).await
    } else {
        as_text(admin, json).await
    }
}

/// One picture, or one object, after the other. Failures are reported on standard error.
async fn as_text(admin: &Admin, json: bool) -> Result<u8, Failure> {
    let mut ends = Ends::listen()?;
    let show = async {
        let mut tick = every(EVERY);
        let (mut watch, mut trouble) = (Watch::default(), None);
        loop {
            tick.tick().await;
            match look(admin).await {
                Ok(news) => {
                    trouble = None;
                    if json {
                        print(&format!("{}\n", news.json))?;
                        continue;
                    }
                    watch.hear(news.status, news.recent);
                    print(&format!("{}\n", watch.text()))?;
                }
                Err(error) => {
                    let error = error.to_string();
                    // Reported when it begins or changes, not at each try.
                    if trouble.as_ref() != Some(&error) {
                        let mut stderr = io::stderr().lock();
                        let _ = writeln!(stderr, "warmhop: no answer, trying again: {error}");
                    }
                    trouble = Some(error);
                }
            }
        }
    };
    tokio::select! {
        outcome = show => outcome,
        () = ends.wait() => Ok(0),
    }
}

async fn on_screen(admin: &Admin) -> Result<u8, Failure> {
    let cannot =
        |error: io::Error| Failure::failed(format!("cannot draw on the terminal: {error}"));
    let coloured = log::is_coloured(&io::stdout());
    let mut ends = Ends::listen()?;
    let mut end = pin!(ends.wait());
    let mut resized = listen(SignalKind::window_change())?;
    // Declared first and so dropped last: the terminal is restored whatever happens here.
    let _screen = Screen::enter().map_err(cannot)?;
    let mut terminal: Terminal<CrosstermBackend<Stdout>> =
        Terminal::new(CrosstermBackend::new(io::stdout())).map_err(cannot)?;
    let mut keys = keys();
    let (mut tick, mut history_tick) = (every(EVERY), every(HISTORY_EVERY));
    let (mut watch, mut board) = (Watch::default(), Board::default());
    let (mut heard, mut trouble) = (Instant::now(), None);
    let mut question = None;
    let mut history: Option<Pin<Box<dyn Future<Output = Traffic>>>> = None;
    loop {
        let silence = silence(heard.elapsed(), trouble.as_deref());
        let scene = Scene {
            watch: &watch,
            board: &board,
            silence: silence.as_deref(),
            coloured,
            now: SystemTime::now(),
        };
        terminal.draw(|frame| scene.draw(frame)).map_err(cannot)?;
        let shown = scene.shown();
        tokio::select! {
            answer = answered(&mut question) => {
                question = None;
                match answer {
                    Ok(Look { status, recent, .. }) => {
                        (heard, trouble) = (Instant::now(), None);
                        watch.hear(status, recent);
                    }
                    Err(error) => trouble = Some(AskError::to_string(&error)),
                }
            }
            traffic = answered(&mut history) => {
                history = None;
                watch.traffic = traffic;
            }
            Some(event) = keys.recv() => {
                if let Event::Key(key) = event
                    && board.press(key, &shown) == ControlFlow::Break(())
                {
                    return Ok(0);
                }
            }
            _ = tick.tick() => {
                question.get_or_insert_with(|| Box::pin(look(admin)));
            }
            _ = history_tick.tick(), if history.is_none() && watch.latest.is_some() => {
                let peers = watch.latest.as_ref().map(|(status, _)| others(status));
                history = Some(Box::pin(histories(admin.clone(), peers.unwrap_or_default())));
            }
            _ = resized.recv() => {}
            () = &mut end => return Ok(0),
        }
    }
}

/// The text for a peer that has not answered for so long.
fn silence(since: Duration, trouble: Option<&str>) -> Option<String> {
    let seconds = since.as_secs();
    match trouble {
        Some(why) => Some(format!("no answer for {seconds} s, trying again: {why}")),
        None if since > MISSED_AFTER => Some(format!("no answer for {seconds} s")),
        None => None,
    }
}

/// The answer to a question, if one is open.
async fn answered<F: Future + ?Sized>(question: &mut Option<Pin<Box<F>>>) -> F::Output {
    match question {
        Some(question) => question.as_mut().await,
        None => pending().await,
    }
}

/// The terminal's events. Reading them blocks, so a thread does it, which ends with the program.
fn keys() -> mpsc::Receiver<Event> {
    let (events, keys) = mpsc::channel(KEYS_MAX);
    std::thread::spawn(move || {
        // It fails if there is no terminal to read keys from; then there are none.
        while let Ok(event) = event::read() {
            if events.blocking_send(event).is_err() {
                return;
            }
        }
    });
    keys
}

/// The alternate screen, so that the former contents return at the end; without the cursor, and
/// with each key delivered as it is pressed.
struct Screen;

impl Screen {
    fn enter() -> io::Result<Self> {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            // First, or the panic's message would disappear with the alternate screen.
            leave();
            before(info);
        }));
        execute!(io::stdout(), EnterAlternateScreen, cursor::Hide)?;
        // Without a terminal to read from there is no mode to set, but the view still works.
        let _ = enable_raw_mode();
        Ok(Self)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        leave();
    }
}

fn leave() {
    // Nobody is left to report a failure to.
    let _ = disable_raw_mode();
    let _ = execute!(io::stdout(), cursor::Show, LeaveAlternateScreen);
}

/// The signals that end it from outside.
struct Ends {
    interrupted: Signal,
    terminated: Signal,
}

impl Ends {
    fn listen() -> Result<Self, Failure> {
        Ok(Self {
            interrupted: listen(SignalKind::interrupt())?,
            terminated: listen(SignalKind::terminate())?,
        })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.interrupted.recv() => {}
            _ = self.terminated.recv() => {}
        }
    }
}

fn listen(kind: SignalKind) -> Result<Signal, Failure> {
    signal(kind).map_err(|error| Failure::failed(format!("cannot wait for signals: {error}")))
}

fn every(span: Duration) -> Interval {
    let mut tick = interval(span);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick
}

/// A peer's answers at one moment.
struct Look {
    /// Its status with its newest requests, as it sent them.
    json: Value,
    status: Status,
    recent: Vec<RequestTrace>,
}

/// Asks for everything that is shown. A peer that is too old to send its newest requests sends
/// none.
async fn look(admin: &Admin) -> Result<Look, AskError> {
    let mut json = admin.status().await?;
    let status = admin.read(&json)?;
    let requests = match admin.ask(Method::GET, "/v1/requests?limit=50", "/requests").await {
        Ok(requests) => requests,
        Err(AskError::Refused { .. }) => Value::Null,
        Err(error) => return Err(error),
    };
    let recent = match &requests {
        Value::Null => Vec::new(),
        requests => admin.read::<Recent>(requests)?.requests,
    };
    if let Some(all) = json.as_object_mut() {
        all.insert("requests".into(), requests["requests"].clone());
    }
    Ok(Look { json, status, recent })
}

/// The peers whose last minutes are asked for through the watched one.
fn others(status: &Status) -> Vec<String> {
    let others = status.peers.iter().filter(|peer| peer.alive);
    others.take(HISTORIES_MAX).map(|peer| peer.name.clone()).collect()
}

/// The last minutes of all peers that report them.
async fn histories(admin: Admin, others: Vec<String>) -> Traffic {
    const PATH: &str = "/v1/history";
    let ask = async |path: String| {
        let answer = admin.ask(Method::GET, &path, "/interval_ms").await.ok()?;
        admin.read::<History>(&answer).ok()
    };
    let mut histories = Vec::new();
    histories.extend(ask(PATH.into()).await);
    for peer in others {
        histories
            .extend(ask(format!("/v1/peers/{}{PATH}", encoded(&peer).replace('/', "%2F"))).await);
    }
    Traffic::of(&histories)
}

/// Writes to standard output; a reader that has seen enough ends the program quietly.
fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => Err(Failure::failed(format!("cannot write the answer: {error}"))),
    }
}
