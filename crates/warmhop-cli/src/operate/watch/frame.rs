//! The pages of `status --watch` in a terminal, each drawn only from the peer's answers and the
//! state of the keys.

use std::time::{Duration, SystemTime};

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Paragraph, Sparkline, Wrap};
use warmhop::status::{AppStatus, OtherPeer, RequestTrace, Status};

use super::board::{Board, Focus, Page, Shown, Sort};
use super::fit::{Shrinks, cut};
use super::grid::{Grid, Text, style};
use super::{
    CUT_OFF, Watch, ago, answer, decided, elsewhere_with_eta, peer_rows, progress, since, words,
};

use crate::operate::columns::{Columns, Meaning};
use crate::operate::show::{
    self, NOT_HERE, app_names, app_state, clean, peer_state, printed, span, trouble,
};

/// How many of the newest requests are always shown, however many apps and peers there are.
const RECENT_LEAST: usize = 4;
/// How many lines tell of seeds and peers that are not reached.
const TROUBLE_LINES: usize = 4;
/// For how many failed apps the reason is shown.
const ERRORS_MAX: usize = 3;
/// Into how many parts the last minutes are divided, in a table and on an app's page.
const PARTS: usize = 20;
const PARTS_OF_PAGE: usize = 60;
/// The height of the plot of requests on an app's page.
const PLOT_LINES: u16 = 3;
/// A response with this status or above is an error.
const ERRORS_FROM: u16 = 500;

const KEYS: &[(&str, &str)] = &[
    ("q, Ctrl-C", "quit"),
    ("↑ ↓, k j", "move; Page Up, Page Down, Home and End as well"),
    ("Tab", "between the apps and the newest requests"),
    ("Enter", "everything about the app or the request that is chosen"),
    ("Esc", "back; takes the filter away; quits where nothing is left to leave"),
    ("/", "show only the apps and requests that have this text in them"),
    ("s", "sort the apps: by state, name, requests a second, errors"),
    ("?", "these keys"),
];

/// Everything that a picture is made of.
pub(super) struct Scene<'a> {
    pub(super) watch: &'a Watch,
    pub(super) board: &'a Board,
    /// The text for a peer that does not answer: the picture then shows its last answer.
    pub(super) silence: Option<&'a str>,
    pub(super) coloured: bool,
    pub(super) now: SystemTime,
}

impl Scene<'_> {
    /// The items that can be selected in this picture.
    pub(super) fn shown(&self) -> Shown {
        let Some((status, recent)) = &self.watch.latest else { return Shown::default() };
        Shown {
            apps: self.apps(status).into_iter().map(str::to_owned).collect(),
            decisions: self.decisions(recent).into_iter().map(|it| it.id.clone()).collect(),
            lines: self.page_lines(status, recent).len(),
        }
    }

    pub(super) fn draw(&self, frame: &mut Frame<'_>) {
        let mut rest = frame.area();
        if let Some(silence) = self.silence {
            let red = style(Some(Meaning::Bad), self.coloured);
            if self.watch.latest.is_none() {
                let paragraph = Paragraph::new(clean(silence)).style(red).wrap(Wrap { trim: true });
                return frame.render_widget(paragraph, rest);
            }
            line(frame, &mut rest, &clean(silence), red);
        }
        let Some((status, recent)) = &self.watch.latest else {
            return line(frame, &mut rest, "asking the peer", Style::new());
        };
        let foot = bottom(&mut rest);
        self.foot(frame, foot);
        match &self.board.page {
            Page::Overview => self.overview(frame, rest, status, recent),
            Page::App(name) => self.app_page(frame, rest, name, status, recent),
            Page::Decision(_) | Page::Help => self.text_page(frame, rest, status, recent),
        }
    }

    fn foot(&self, frame: &mut Frame<'_>, area: Rect) {
        let board = self.board;
        let text = match &board.page {
            _ if board.is_typing => {
                format!("/{}▏  Enter keeps it, Esc takes it away", board.filter)
            }
            Page::Overview => {
                let filter = if board.filter.is_empty() { "filter" } else { &board.filter };
                format!(
                    "q quit  ↑↓ move  Tab  Enter open  / {}  s sort: {}  ? keys",
                    clean(filter),
                    board.sort.name()
                )
            }
            Page::App(_) | Page::Decision(_) | Page::Help => "q quit  ↑↓ scroll  Esc back".into(),
        };
        let mut area = area;
        line(frame, &mut area, &text, Style::new().add_modifier(Modifier::DIM));
    }

    fn overview(
        &self,
        frame: &mut Frame<'_>,
        area: Rect,
        status: &Status,
        recent: &[RequestTrace],
    ) {
        let mut rest = area;
        for text in self.watch.head(status, self.silence.is_some()).lines() {
            line(frame, &mut rest, text, Style::new());
        }
        let red = style(Some(Meaning::Bad), self.coloured);
        for text in trouble(status).lines().filter(|text| !text.is_empty()).take(TROUBLE_LINES) {
            line(frame, &mut rest, text, red);
        }
        gap(&mut rest);
        let (apps, decisions) = (self.apps(status), self.decisions(recent));
        let has_failed = |app: &&AppStatus| app.state != "ready" && app.error.is_some();
        let failed: Vec<&AppStatus> =
            status.apps.iter().filter(|app| has_failed(app) && self.passes(&[&app.name])).collect();
        let room = Room::within(
            rest.height.into(),
            1 + status.peers.len(),
            apps.len(),
            failed.len(),
            decisions.len(),
        );

        // If not all fit, one line says how many more there are.
        let rows = |room: usize, of: usize| if of > room { room.saturating_sub(1) } else { of };
        let area = top(&mut rest, 1 + rows(room.peers, 1 + status.peers.len()));
        self.peers(status, room.peers).draw(frame, area, self.coloured, None);
        left_out(frame, &mut rest, 1 + status.peers.len(), room.peers, "peers");
        gap(&mut rest);
        if apps.is_empty() {
            let none = if self.board.filter.is_empty() {
                "no apps are configured on this peer"
            } else {
                "no app has that in its name"
            };
            line(frame, &mut rest, none, Style::new());
        } else {
            let area = top(&mut rest, 1 + rows(room.apps, apps.len()));
            self.draw_apps(frame, area, status, &apps);
            left_out(frame, &mut rest, apps.len(), room.apps, "apps");
        }
        for app in failed.iter().take(room.errors) {
            let why = app.error.as_deref().and_then(|error| error.lines().next());
            let text = format!("{}: {}", clean(&app.name), printed(why.unwrap_or_default()));
            line(frame, &mut rest, &text, style(Some(Meaning::Bad), self.coloured));
        }
        if !decisions.is_empty() {
            gap(&mut rest);
            let ids: Vec<String> = decisions.iter().map(|it| it.id.clone()).collect();
            let at = self.board.chosen(Focus::Decisions, &ids);
            self.decision_grid(&decisions).draw(frame, rest, self.coloured, at);
        }
    }

    fn peers(&self, status: &Status, room: usize) -> Grid {
        let mut grid = Grid::new(&[
            ("PEER", Shrinks::Middle(18)),
            ("STATE", Shrinks::Never),
            ("ROUND TRIP", Shrinks::Never),
            ("HOPS SENT", Shrinks::Never),
            ("RECEIVED", Shrinks::Never),
            ("ZONE", Shrinks::Never),
            ("FRONT DOOR", Shrinks::Never),
            ("MESH", Shrinks::Never),
        ]);
        let all: Vec<Option<&OtherPeer>> =
            [None].into_iter().chain(status.peers.iter().map(Some)).collect();
        let stands_out = |peer: Option<&OtherPeer>| peer.is_none_or(|it| peer_state(it) != "alive");
        let rows = peer_rows(status, self.silence.is_some(), &chosen(&all, room, stands_out));
        for row in rows {
            grid.row(row.into_iter().map(Text::from).collect());
        }
        grid
    }

    /// The names of the apps that match the filter, in their order.
    fn apps<'b>(&self, status: &'b Status) -> Vec<&'b str> {
        let mut names = app_names(status);
        names.retain(|name| self.passes(&[*name]));
        let traffic = &self.watch.traffic;
        match self.board.sort {
            Sort::State => names.sort_by_key(|name| (!is_up(status, name), *name)),
            Sort::Name => names.sort_unstable(),
            Sort::Requests => {
                names
                    .sort_by(|a, b| traffic.lately(b).total_cmp(&traffic.lately(a)).then(a.cmp(b)));
            }
            Sort::Errors => names.sort_by(|a, b| {
                let (a_failed, b_failed) = (traffic.counts(a).1, traffic.counts(b).1);
                b_failed.total_cmp(&a_failed).then(a.cmp(b))
            }),
        }
        names
    }

    fn decisions<'b>(&self, recent: &'b [RequestTrace]) -> Vec<&'b RequestTrace> {
        let passes = |trace: &&RequestTrace| {
            let why = decided(trace).map_or("", |step| &step.why);
            let app = trace.app.as_deref().unwrap_or_default();
            self.passes(&[&trace.request, app, &trace.id, why])
        };
        recent.iter().filter(passes).collect()
    }

    fn passes(&self, texts: &[&str]) -> bool {
        let wanted = self.board.filter.to_lowercase();
        wanted.is_empty() || texts.iter().any(|text| text.to_lowercase().contains(&wanted))
    }

    fn draw_apps(&self, frame: &mut Frame<'_>, area: Rect, status: &Status, names: &[&str]) {
        let here = |name: &str| status.apps.iter().find(|app| app.name == name);
        let traffic = &self.watch.traffic;
        let starts = names.iter().any(|it| here(it).is_some_and(|app| app.state == "starting"));
        let mut columns = vec![
            ("APP", Shrinks::Middle(12)),
            ("HERE", Shrinks::Never),
            ("ELSEWHERE", Shrinks::End(12)),
        ];
        if starts {
            columns.push(("PROGRESS", Shrinks::Never));
        }
        if traffic.is_known() {
            columns.extend([("REQ/S", Shrinks::Never), ("ERRORS", Shrinks::Never)]);
        }
        let plots = traffic.is_known().then_some(columns.len());
        if plots.is_some() {
            columns.push(("LAST MINUTES", Shrinks::Never));
        }
        columns.extend(["IN FLIGHT", "WAITING", "STARTS"].map(|head| (head, Shrinks::Never)));
        let mut grid = Grid::new(&columns);
        for name in names {
            let app = here(name);
            let mut row: Vec<Text> = vec![
                (*name).into(),
                app.map_or(NOT_HERE, app_state).into(),
                elsewhere_with_eta(name, &status.peers).into(),
            ];
            if starts {
                let progress = app.filter(|it| it.state == "starting").map(progress);
                row.push(progress.unwrap_or_default().into());
            }
            if traffic.is_known() {
                let (all, failed) = traffic.counts(name);
                row.push(format!("{:.1}", traffic.lately(name)).into());
                row.push(share(failed, all));
                row.push(" ".repeat(PARTS).into());
            }
            if let Some(app) = app {
                let counts = [app.in_flight.into(), app.waiting, app.starts];
                row.extend(counts.map(|count| Text::from(count.to_string())));
            }
            grid.row(row);
        }
        let owned: Vec<String> = names.iter().map(ToString::to_string).collect();
        let at = self.board.chosen(Focus::Apps, &owned);
        let drawn = grid.draw(frame, area, self.coloured, at);
        for (row, name) in names.iter().enumerate() {
            let Some(cell) = plots.and_then(|column| drawn.cell(row, column)) else { continue };
            let parts = traffic.parts(name, PARTS);
            frame.render_widget(Sparkline::default().data(parts.iter().map(|(all, _)| *all)), cell);
        }
    }

    fn decision_grid(&self, recent: &[&RequestTrace]) -> Grid {
        let mut grid = Grid::new(&[
            ("AGO", Shrinks::Never),
            ("WHAT", Shrinks::Middle(9)),
            ("ANSWER", Shrinks::Never),
            ("REQUEST", Shrinks::Middle(8)),
            ("APP", Shrinks::Middle(6)),
            ("WHY", Shrinks::End(12)),
        ]);
        for trace in recent {
            let decided = decided(trace);
            let is_error = trace.status.is_some_and(|status| status >= ERRORS_FROM)
                || decided.is_some_and(|step| step.what == CUT_OFF);
            grid.row(vec![
                ago(since(trace, self.now)).into(),
                words(trace, decided).into(),
                Text::meaning(answer(trace), is_error.then_some(Meaning::Bad)),
                trace.request.clone().into(),
                trace.app.clone().unwrap_or_else(|| "none".into()).into(),
                decided.map(|step| step.why.clone()).unwrap_or_default().into(),
            ]);
        }
        grid
    }

    fn app_page(
        &self,
        frame: &mut Frame<'_>,
        area: Rect,
        name: &str,
        status: &Status,
        recent: &[RequestTrace],
    ) {
        let mut rest = area;
        let traffic = &self.watch.traffic;
        if traffic.is_known() && area.height > 4 * PLOT_LINES {
            let (all, failed) = traffic.counts(name);
            let parts = traffic.parts(name, PARTS_OF_PAGE);
            let most = parts.iter().map(|(all, _)| *all).max().unwrap_or_default();
            let text = format!(
                "requests: {:.1} a second; {all:.0} in the last {} min, of them {failed:.0} failed",
                traffic.lately(name),
                traffic.minutes(),
            );
            line(frame, &mut rest, &text, Style::new());
            let plot = Sparkline::default().max(most).data(parts.iter().map(|(all, _)| *all));
            frame.render_widget(plot, top(&mut rest, PLOT_LINES.into()));
            let red = style(Some(Meaning::Bad), self.coloured);
            let plot = Sparkline::default().max(most).style(red);
            let plot = plot.data(parts.iter().map(|(_, failed)| *failed));
            frame.render_widget(plot, top(&mut rest, 1));
            gap(&mut rest);
        }
        self.text_page(frame, rest, status, recent);
    }

    fn text_page(
        &self,
        frame: &mut Frame<'_>,
        area: Rect,
        status: &Status,
        recent: &[RequestTrace],
    ) {
        let lines = self.page_lines(status, recent);
        let from = self.board.scroll.min(lines.len().saturating_sub(1));
        let lines: Vec<Line<'_>> = lines.into_iter().skip(from).map(Line::from).collect();
        frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: false }), area);
    }

    /// The lines of the open page.
    fn page_lines(&self, status: &Status, recent: &[RequestTrace]) -> Vec<String> {
        let text = match &self.board.page {
            Page::Overview => String::new(),
            Page::Help => {
                let mut keys = Columns::new(&["KEY", ""]);
                for (key, what) in KEYS {
                    keys.row(vec![(*key).into(), (*what).into()]);
                }
                let mut text = String::new();
                keys.print(&mut text, false);
                text
            }
            Page::App(name) => about_app(name, status),
            Page::Decision(id) => match recent.iter().find(|trace| trace.id == *id) {
                Some(trace) => show::trace(trace, false),
                None => format!(
                    "{} is not among the newest requests any more: see `warmhop why {0}`\n",
                    clean(id)
                ),
            },
        };
        text.lines().map(str::to_owned).collect()
    }
}

/// Whether the app is more than cold anywhere, or has failed here.
fn is_up(status: &Status, name: &str) -> bool {
    let here = status.apps.iter().find(|app| app.name == name);
    here.is_some_and(|app| app_state(app) != "cold")
        || !elsewhere_with_eta(name, &status.peers).is_empty()
}

/// An app on every peer.
fn about_app(name: &str, status: &Status) -> String {
    let mut text = format!("{}\n\n", clean(name));
    let mut columns =
        Columns::new(&["PEER", "STATE", "START", "IN FLIGHT", "WAITING", "STARTS", "VERSION"]);
    let here = status.apps.iter().find(|app| app.name == name);
    let eta = |ms: Option<u64>| ms.map(|ms| span(Duration::from_millis(ms))).unwrap_or_default();
    if let Some(app) = here {
        columns.row(vec![
            format!("{} (this one)", status.peer.name),
            app_state(app).into(),
            progress(app),
            app.in_flight.to_string(),
            app.waiting.to_string(),
            app.starts.to_string(),
            app.version.clone().unwrap_or_default(),
        ]);
    }
    for peer in &status.peers {
        let Some(state) = peer.apps.get(name) else { continue };
        let copy = peer.copies.get(name);
        columns.row(vec![
            peer.name.clone(),
            if peer.alive { state.clone() } else { format!("{state}, peer gone") },
            eta(copy.and_then(|copy| copy.eta_ms)),
            String::new(),
            String::new(),
            String::new(),
            copy.and_then(|copy| copy.version.clone()).unwrap_or_default(),
        ]);
    }
    columns.print(&mut text, false);
    let Some(app) = here else { return text };
    text.push_str(&format!("\nsessions: {}\n", clean(&app.session)));
    if !app.differs_on.is_empty() {
        let peers = clean(&app.differs_on.join(", "));
        text.push_str(&format!("configured differently on {peers}\n"));
    }
    if let Some(error) = &app.error {
        text.push('\n');
        for line in error.lines() {
            text.push_str(&printed(line));
            text.push('\n');
        }
    }
    text
}

/// The share of the requests that failed.
fn share(failed: f64, all: f64) -> Text {
    if failed < 0.5 || all <= 0.0 {
        return Text::from("");
    }
    let percent = failed * 100.0 / all;
    let text = if percent < 10.0 { format!("{percent:.1} %") } else { format!("{percent:.0} %") };
    Text::meaning(text, Some(Meaning::Bad))
}

/// How many rows each table has, and for how many apps the reason of their failure is shown.
struct Room {
    peers: usize,
    apps: usize,
    errors: usize,
}

impl Room {
    /// Divides `lines`; the few rows of the newest requests are reserved.
    fn within(lines: usize, peers: usize, apps: usize, failed: usize, recent: usize) -> Self {
        let errors = failed.min(ERRORS_MAX);
        // The heads of three tables, and the empty lines between them.
        let around = if recent > 0 { 5 } else { 3 };
        let free = lines.saturating_sub(around + recent.min(RECENT_LEAST));
        if peers + apps + errors <= free {
            return Self { peers, apps, errors };
        }
        let peers = peers.min(free.saturating_sub(apps + errors).max(free / 3));
        let errors = errors.min((free - peers) / 4);
        Self { peers, apps: apps.min(free - peers - errors), errors }
    }
}

/// The `items` that fit, in their order: those that stand out take precedence. If not all fit, one
/// row is for the number of the others.
fn chosen<T: Copy>(items: &[T], room: usize, stands_out: impl Fn(T) -> bool) -> Vec<T> {
    if items.len() <= room {
        return items.to_vec();
    }
    let (mut first, rest): (Vec<usize>, Vec<usize>) =
        (0..items.len()).partition(|at| stands_out(items[*at]));
    first.extend(rest);
    first.truncate(room.saturating_sub(1));
    first.sort_unstable();
    first.into_iter().map(|at| items[at]).collect()
}

/// Cuts off the first `lines` lines of `rest`.
fn top(rest: &mut Rect, lines: usize) -> Rect {
    let height = u16::try_from(lines).unwrap_or(u16::MAX).min(rest.height);
    let taken = Rect { height, ..*rest };
    rest.y += height;
    rest.height -= height;
    taken
}

/// Cuts off the last line of `rest`.
fn bottom(rest: &mut Rect) -> Rect {
    let height = rest.height.min(1);
    rest.height -= height;
    Rect { y: rest.bottom(), height, ..*rest }
}

fn gap(rest: &mut Rect) {
    top(rest, 1);
}

fn line(frame: &mut Frame<'_>, rest: &mut Rect, text: &str, style: Style) {
    let area = top(rest, 1);
    let shown = cut(text, area.width.into());
    frame.render_widget(Paragraph::new(shown).style(style), area);
}

/// Shows how many items [`chosen`] left out.
fn left_out(frame: &mut Frame<'_>, rest: &mut Rect, count: usize, room: usize, what: &str) {
    if count > room {
        let more = count - room.saturating_sub(1);
        line(frame, rest, &format!("{more} more {what}"), Style::new());
    }
}
