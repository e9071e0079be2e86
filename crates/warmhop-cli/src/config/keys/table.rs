//! The keys themselves, table by table.

use super::{Key, Kind};

/// The tables in the order of the reference: their path, their heading, and what they are about.
pub(super) const TABLES: &[(&str, &str, &str)] = &[
    ("", "At the top", "What all of the file belongs to."),
    ("peer", "`[peer]`", "Who this peer is."),
    ("http", "`[http]`", "The front doors, where clients arrive."),
    (
        "http.tls",
        "`[http] tls`",
        "A certificate makes the front doors speak TLS; absent, they speak plain HTTP.",
    ),
    ("mesh", "`[mesh]`", "How this peer meets the others."),
    ("admin", "`[admin]`", "Where the dashboard, the metrics and the commands ask."),
    ("session", "`[session]`", "How sessions are kept. All peers should say the same."),
    ("session.cookie", "`[session] cookie`", "The affinity cookie."),
    ("log", "`[log]`", "What is logged of requests."),
    ("run", "`[run]`", "What the peer takes of its machine."),
    ("app", "`[[app]]`", "An app, once for each. See [apps.md](apps.md)."),
    (
        "app.match",
        "`[[app]] match`",
        "Which requests are for the app; a list of tables, `[[app.match]]`, where they are of several kinds. The most specific match wins: a host by name, then `*.`, then any, and then the longest path. See [apps.md](apps.md).",
    ),
    (
        "app.session",
        "`[[app]] session`",
        "A table instead of a word: pinned sessions that are known by an id of the app's own, for clients that keep no cookies. See [sessions.md](sessions.md).",
    ),
    ("app.session.by", "`[[app]] session.by`", "Where that id is; one of these."),
    ("app.limits", "`[[app]] limits`", "What it may take of its machine."),
    ("app.ready", "`[[app]] ready`", "When a copy that starts counts as ready."),
    (
        "app.alive",
        "`[[app]] alive`",
        "How a ready copy is asked whether it is well. Absent, it is asked only where requests fail or hang.",
    ),
    (
        "app.scale",
        "`[[app]] scale`",
        "Where all ready copies are busy for a while, one more peer starts its own. It needs `concurrency`. Absent, copies start where requests arrive, and as `keep_ready` says.",
    ),
    (
        "app.wake",
        "`[[app]] wake`",
        "Which requests start no copy and keep none from being idle: those of clients that only check whether the app is there. Where it is ready nowhere they get 503.",
    ),
];

const fn key(
    table: &'static str,
    name: &'static str,
    kind: Kind,
    default: &'static str,
    meaning: &'static str,
) -> Key {
    Key { table, name, kind, default, meaning }
}

/// Every key.
#[rustfmt::skip]
pub(super) const KEYS: &[Key] = &[
    key("", "cluster", Kind::Text, "\"warmhop\"", "Only peers of the same cluster and authority talk. 1 to 64 of `A-Z a-z 0-9 _ -`."),

    key("peer", "name", Kind::Text, "", "Unique in the cluster, and the route in the affinity cookie. 1 to 32 of `A-Z a-z 0-9 _ -`."),
    key("peer", "zone", Kind::Text, "(none)", "Peers of the same zone are preferred for hops. Of the form of a name."),

    key("http", "listen", Kind::Addresses, "[\"127.0.0.1:8081\"]", "Where clients are listened for. An empty list: this peer has no front door."),
    key("http", "reveal", Kind::Flag, "true", "Whether answers show the mesh's inside: `Warmhop-Peer`, `Warmhop-Request-Id`, peers in `Via` and `Proxy-Status`, and what went wrong. `false` for doors that the public reaches; the log and the access log say it all the same. With `false` the affinity cookie calls peers by aliases, too: see `route` of `[session] cookie`."),
    key("http", "error_page", Kind::Path, "(the mesh's own)", "A page of HTML for browsers whose request cannot be served, of at most 256 KiB. In it `{status}`, `{title}`, `{words}`, `{detail}`, `{id}` and, for the head, `{again}` stand for what happened. Programs get problem details (RFC 9457) in JSON."),
    key("http", "memory", Kind::Size("1MiB", "1024GiB"), "(a quarter of the machine's, or of the control group's)", "All that clients can make this peer hold. Over it, the address that takes most loses the connection that takes most. See [trust.md](trust.md)."),
    key("http", "connections_per_address", Kind::Number(1, 1 << 20), "4096", "Connections of one address, or of one /64 of IPv6, at all doors together. A balancer is one address."),
    key("http", "body_rate", Kind::Size("0B", "1GiB"), "\"240B\"", "How much of a request's body has to come each second while it is waited for; `\"0B\"`: any. Less gets 408."),
    key("http", "body_timeout", Kind::Span("1s", "1d"), "\"1m\"", "How long a request's body may bring nothing while it is waited for. Past it, it gets 408."),
    key("http", "trusted_proxies", Kind::Texts, "[]", "Addresses and networks, such as `10.0.0.0/8`, whose `Forwarded`, `X-Forwarded-*` and `X-Real-IP` are believed; of everybody else they are taken out."),
    key("http", "proxy_protocol", Kind::Flag, "false", "Whether each connection begins with a header of the PROXY protocol, version 1 or 2, believed from `trusted_proxies`."),
    key("http", "drain_grace", Kind::Span("0ms", "1h"), "\"30s\"", "How long requests and streams in flight may take to end once the peer drains. A peer takes up to so much longer to end."),

    key("http.tls", "cert", Kind::Path, "", "The certificate chain, in PEM."),
    key("http.tls", "key", Kind::Path, "", "Its private key, in PEM."),

    key("mesh", "listen", Kind::Address, "\"127.0.0.1:7001\"", "The one UDP port for gossip, hops and sessions."),
    key("mesh", "advertise", Kind::Address, "(`listen`)", "Where the other peers reach it. Required where `listen` is an address of zeros."),
    key("mesh", "seeds", Kind::Texts, "[]", "`HOST:PORT` of peers to join, resolved again as they change. None needs to be up. One's own address is left out."),
    key("mesh", "identity", Kind::Path, "(`certs/NAME`)", "The folder of `ca.pem`, `cert.pem` and `key.pem`, as `warmhop cert peer` writes it."),
    key("mesh", "refuse", Kind::Texts, "[]", "Members to have nothing to do with: a peer's name, or the fingerprint of a certificate, `sha256:` and 64 hexadecimal digits. `warmhop reload` has it read again. See [trust.md](trust.md)."),
    key("mesh", "cookie_key", Kind::Paths, "(beside the identity)", "The file of the key that cookies are authenticated by, the same for every peer; or two, of which the first makes cookies and both are believed. See [deploy.md](deploy.md)."),

    key("admin", "listen", Kind::Address, "\"127.0.0.1:9001\"", "Where it listens. Only loopback without a token."),
    key("admin", "token", Kind::Text, "(none)", "The bearer token that every request to the listener has to bring, 16 to 256 visible characters: `openssl rand -hex 32`. The commands take it from `WARMHOP_ADMIN_TOKEN`."),

    key("session", "copies", Kind::Number(1, 3), "3", "On how many peers a session is kept, where so many are alive. Each costs its memory, and a vote for each change."),
    key("session", "ttl", Kind::Span("1s", "366d"), "\"30m\"", "How long a session lives that nobody uses. Longer ones take memory for longer."),
    key("session", "memory", Kind::Size("1MiB", "16384GiB"), "(a quarter of the machine's, or of the control group's)", "What sessions may take here. Changes are refused from seven eighths of it on."),
    key("session", "without_majority", Kind::OneOf(&["refuse", "serve"]), "\"refuse\"", "Where most holders of a session are out of reach: refuse its requests with 503, or go on from one copy as a new session that is marked `Warmhop-Session-Forked`."),
    key("session", "state_bytes_max", Kind::Number(1, 1 << 20), "4096", "The most bytes that an app may carry in a session (`Warmhop-Session`). They travel with each request: an app's server has to take a field so long."),
    key("session", "stored_response_bytes_max", Kind::Number(0, 1 << 20), "65536", "The most bytes of an answer that are kept to be repeated for its `Idempotency-Key`, in each copy."),
    key("session", "redis", Kind::Address, "(none)", "Where the Redis-speaking endpoint for session libraries listens; loopback only. See [redis.md](redis.md)."),
    key("session", "redis_events", Kind::Text, "\"\"", "Which changes of keys that endpoint tells to those who listen for them, as Redis' `notify-keyspace-events`: `\"Egx\"` for Spring Session. The same at every peer."),

    key("session.cookie", "name", Kind::Text, "\"warmhop\"", "1 to 64 letters, digits, `-` and `_`. Balancers have to know it."),
    key("session.cookie", "same_site", Kind::OneOf(&["strict", "lax", "none"]), "\"lax\"", "Which requests from other sites bring it. `\"none\"` is taken by browsers with `secure` alone."),
    key("session.cookie", "secure", Kind::Flag, "(behind TLS)", "Whether browsers send it over TLS alone."),
    key("session.cookie", "domain", Kind::Text, "(the host asked for)", "A domain that all hosts of the apps are below."),
    key("session.cookie", "route", Kind::OneOf(&["name", "opaque"]), "(`\"name\"`; with `[http] reveal = false`, `\"opaque\"`)", "What the cookie calls the peer that the client should come back to: its name, or an alias that tells clients nothing. `warmhop lb` prints the aliases for balancers. They are made with the key of cookies: print the configuration again when that changes. See [load-balancers.md](load-balancers.md)."),

    key("log", "access", Kind::Path, "(none)", "Where each request of a client is logged in one line: `\"stderr\"`, or a file. See [observability.md](observability.md)."),
    key("log", "access_format", Kind::OneOf(&["text", "json"]), "\"text\"", "The form of its lines."),
    key("log", "access_query", Kind::Flag, "false", "Whether queries are logged, which may hold secrets."),

    key("run", "threads", Kind::Number(1, 1024), "(one for each core that it may use)", "The threads that serve clients."),

    key("app", "name", Kind::Text, "", "Unique in the cluster: the same app on several peers has one name."),
    key("app", "run", Kind::Texts, "(required unless `start = \"never\"`)", "Program and arguments. It has to serve HTTP on `127.0.0.1:$PORT`."),
    key("app", "dir", Kind::Path, "(the folder of the file)", "The folder that it runs in."),
    key("app", "env", Kind::Variables, "{}", "What is added to its environment. `PORT` and `REDIS_URL` are set by the peer."),
    key("app", "env_file", Kind::Path, "(none)", "A file of lines `NAME=value`, read at each start of a copy; what `env` has comes first."),
    key("app", "inherit_env", Kind::FlagOrNames, "true", "What it inherits of the peer's environment: all, nothing but `PATH`, or `PATH` and the variables that are named."),
    key("app", "strip_prefix", Kind::Flag, "false", "Whether the app gets its requests without the `path` of their match, which it is told in `X-Forwarded-Prefix`."),
    key("app", "version", Kind::Text, "(none)", "Which version of the app a start brings up, such as `1.10.2` or a date; peers tell each other, and another one is a reason to replace a copy that runs. Of two, numbers decide part by part. 1 to 64 of `A-Z a-z 0-9 . _ + -`."),
    key("app", "protocol", Kind::OneOf(&["http1", "h2"]), "\"http1\"", "What is spoken with it: HTTP/1.1 with upgrades, or HTTP/2 in clear text, as gRPC servers want it."),
    key("app", "user", Kind::Text, "(the peer's)", "Whose it is, where the peer is root. See [trust.md](trust.md)."),
    key("app", "group", Kind::Text, "(the user's)", "Of which group it is."),
    key("app", "start", Kind::OneOf(&["on-request", "at-boot", "never"]), "\"on-request\"", "When a copy starts here. `\"never\"`: requests hop to other peers."),
    key("app", "stop_when_idle", Kind::Span("100ms", "366d"), "(never)", "After how long without a request a copy is stopped."),
    key("app", "keep_ready", Kind::Number(0, 16), "0", "How many copies are kept ready across the mesh, whichever peer clients ask. Each costs the app's memory on one peer."),
    key("app", "session", Kind::OneOf(&["portable", "pinned", "none"]), "\"none\"", "Who keeps its sessions: the mesh; the app's own memory, where its clients come back to the copy that has it; or nobody. See [sessions.md](sessions.md)."),
    key("app", "effects", Kind::OneOf(&["anything", "session-only"]), "\"anything\"", "`\"session-only\"`: the app changes nothing but its session, so a request that was not answered may run again."),
    key("app", "max_wait", Kind::Span("0ms", "10m"), "\"30s\"", "How long a request may wait where no peer is ready. Past it, it gets 503."),
    key("app", "waiting_max", Kind::Number(1, 100_000), "1024", "How many requests may wait here at once. Each keeps a connection open."),
    key("app", "starting_page", Kind::Flag, "true", "Whether a browser is shown how far the start is, instead of waiting."),
    key("app", "stop_grace", Kind::Span("0ms", "10m"), "\"10s\"", "How long a copy may take to end after SIGTERM; then it is killed."),
    key("app", "head_timeout", Kind::Span("100ms", "1d"), "(none)", "How long an answer's head may take. Past it the client gets 504, and the copy is asked whether it is well."),
    key("app", "concurrency", Kind::Number(1, 100_000), "(as many as come)", "How many requests one copy serves at once. More go to other ready copies, or wait."),

    key("app.match", "host", Kind::TextOrTexts, "(any)", "The host of the request, without port, or a list of them. `*.b.example` is every name that is one label longer than `b.example`."),
    key("app.match", "path", Kind::Text, "\"/\"", "The beginning of its path, by whole segments."),

    key("app.session", "pinned", Kind::Flag, "(required)", "`true`: the app keeps its sessions in its own memory."),
    key("app.session.by", "header", Kind::Text, "(none)", "A field that the app's answer gives the id in, and each request brings it back in, such as `Mcp-Session-Id`."),
    key("app.session.by", "query", Kind::Text, "(none)", "A parameter of the query, such as `sid` of engine.io or `session_hash` of Gradio; also read where it stands in a small body of JSON."),
    key("app.session.by", "cookie", Kind::Text, "(none)", "A cookie that the app sets."),

    key("app.limits", "memory", Kind::Size("16MiB", "1048576GiB"), "(none)", "How much data each of its processes may have."),
    key("app.limits", "files", Kind::Number(1, 1 << 30), "(the peer's)", "How many files each of its processes may have open."),
    key("app.limits", "cpu", Kind::Number(1, 1024), "(all)", "How many processors it may run on."),

    key("app.ready", "path", Kind::Text, "(a connection is enough)", "The path that has to answer."),
    key("app.ready", "host", Kind::Text, "(that of `match`)", "What the question's `Host` says."),
    key("app.ready", "status", Kind::Statuses, "(2xx and 3xx)", "The statuses that count."),
    key("app.ready", "timeout", Kind::Span("100ms", "1h"), "\"1m\"", "How long a start may take. Past it, it has failed."),
    key("app.ready", "every", Kind::Span("10ms", "1m"), "\"100ms\"", "How often it is asked. Less costs the app's processor time."),
    key("app.ready", "probe_timeout", Kind::Span("100ms", "10m"), "\"2s\"", "After how long without an answer it is asked again."),

    key("app.alive", "path", Kind::Text, "(that of `ready`)", "The path that is asked for."),
    key("app.alive", "every", Kind::Span("100ms", "1h"), "\"5s\"", "How often."),
    key("app.alive", "timeout", Kind::Span("100ms", "10m"), "\"1500ms\"", "How long its answer may take."),
    key("app.alive", "misses", Kind::Number(1, 100), "3", "After how many wrong answers in a row the copy is out."),
    key("app.alive", "restart", Kind::Flag, "true", "Whether a copy that is out is replaced by a new one."),

    key("app.scale", "at", Kind::Fraction, "0.8", "From which part of its `concurrency` on a copy is busy. Less starts copies sooner, and for less."),
    key("app.scale", "max", Kind::Number(2, 64), "3", "At most how many copies are ready for that. Each costs the app's memory on one peer."),

    key("app.wake", "not_user_agent", Kind::Texts, "(none)", "Parts of `User-Agent`, whatever their case, such as `kube-probe`."),
    key("app.wake", "not_path", Kind::Texts, "(none)", "Paths, such as `/healthz`, or beginnings of paths, such as `/status/*`."),
];
