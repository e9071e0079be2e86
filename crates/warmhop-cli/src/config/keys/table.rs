//! The keys themselves, table by table.

use super::{Key, Kind};

/// The tables in the order of the reference: their path, their heading, and what they are about.
pub(super) const TABLES: &[(&str, &str, &str)] = &[
    ("", "At the top", "The cluster that the peer belongs to."),
    ("peer", "`[peer]`", "Who this peer is."),
    ("http", "`[http]`", "The front doors, where clients arrive."),
    (
        "http.tls",
        "`[http] tls`",
        "A certificate makes the front doors speak TLS; absent, they speak plain HTTP.",
    ),
    ("mesh", "`[mesh]`", "How this peer meets the others."),
    (
        "admin",
        "`[admin]`",
        "The listener of the dashboard, the metrics and the operator's commands.",
    ),
    ("session", "`[session]`", "How sessions are kept. Configure all peers alike."),
    ("session.cookie", "`[session] cookie`", "The affinity cookie."),
    ("log", "`[log]`", "What is logged of requests."),
    ("run", "`[run]`", "What the peer uses of its machine."),
    ("app", "`[[app]]`", "One table for each app. See [apps.md](apps.md)."),
    (
        "app.match",
        "`[[app]] match`",
        "Which requests the app serves; several `[[app.match]]` tables make several rules. The most specific match wins: an exact host, then `*.`, then any host, and among those the longest path. See [apps.md](apps.md).",
    ),
    (
        "app.session",
        "`[[app]] session`",
        "A table in place of a word: pinned sessions that are identified by the app's own id, for clients without cookies. See [sessions.md](sessions.md).",
    ),
    (
        "app.session.by",
        "`[[app]] session.by`",
        "Where that id is found. Set one, or several for an app whose clients differ: the first that a request has counts.",
    ),
    ("app.limits", "`[[app]] limits`", "Limits of the app's processes."),
    ("app.ready", "`[[app]] ready`", "When a copy that starts counts as ready."),
    (
        "app.alive",
        "`[[app]] alive`",
        "The health check of a ready copy. Without this table a copy is checked only where requests fail or hang.",
    ),
    (
        "app.scale",
        "`[[app]] scale`",
        "Starts a copy on one more peer when all ready copies have been busy for a while. Requires `concurrency`. Without this table copies start where requests arrive, and as `keep_ready` says.",
    ),
    (
        "app.wake",
        "`[[app]] wake`",
        "Requests that neither start a copy nor keep one from being idle, such as those of monitoring. Where the app is ready nowhere, they get 503.",
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
    key("", "cluster", Kind::Text, "\"warmhop\"", "Peers connect only to peers of the same cluster and authority. 1 to 64 of `A-Z a-z 0-9 _ -`."),

    key("peer", "name", Kind::Text, "", "The peer's name, unique in the cluster. It is the route in the affinity cookie, too. 1 to 32 of `A-Z a-z 0-9 _ -`."),
    key("peer", "zone", Kind::Text, "(none)", "Hops prefer peers of the same zone. It takes the characters of a name."),

    key("http", "listen", Kind::Addresses, "[\"127.0.0.1:8081\"]", "The addresses at which clients are accepted. With an empty list this peer has no front door."),
    key("http", "reveal", Kind::Flag, "true", "Whether responses show the inside of the mesh: `Warmhop-Peer`, `Warmhop-Request-Id`, peers in `Via` and `Proxy-Status`, and what went wrong. Use `false` for public front doors; the log and the access log still record it. With `false` the affinity cookie names peers by aliases, too: see `route` of `[session] cookie`."),
    key("http", "error_page", Kind::Path, "(the mesh's own)", "An HTML page, at most 256 KiB, for browsers whose request cannot be served. Its placeholders `{status}`, `{title}`, `{words}`, `{detail}`, `{id}` and, in the head, `{again}` are filled in. Other clients get problem details (RFC 9457) as JSON."),
    key("http", "memory", Kind::Size("1MiB", "1024GiB"), "(an eighth of the machine's, or of the control group's)", "The most memory that clients can make this peer hold. Above it, the client address that uses the most loses its largest connection. See [trust.md](trust.md)."),
    key("http", "connections_per_address", Kind::Number(1, 1 << 20), "4096", "The most connections from one address, or from one IPv6 /64, at all front doors together. A load balancer is one address."),
    key("http", "body_rate", Kind::Size("0B", "1GiB"), "\"240B\"", "How much of a request's body has to arrive each second while the peer waits for it; `\"0B\"`: no minimum. A slower request gets 408."),
    key("http", "body_timeout", Kind::Span("1s", "1d"), "\"1m\"", "How long the peer waits for the next bytes of a request's body. After that the request gets 408."),
    key("http", "trusted_proxies", Kind::Texts, "[]", "Addresses and networks, such as `10.0.0.0/8`, whose `Forwarded`, `X-Forwarded-*` and `X-Real-IP` fields are trusted; from all others these fields are removed."),
    key("http", "proxy_protocol", Kind::Flag, "false", "Whether each connection begins with a PROXY protocol header, version 1 or 2. It is trusted from `trusted_proxies`."),
    key("http", "drain_grace", Kind::Span("0ms", "1h"), "\"30s\"", "How long requests and streams in flight may take to finish once the peer drains. Its shutdown takes up to that much longer."),

    key("http.tls", "cert", Kind::Path, "", "The certificate chain, in PEM."),
    key("http.tls", "key", Kind::Path, "", "Its private key, in PEM."),

    key("mesh", "listen", Kind::Address, "\"127.0.0.1:7001\"", "The UDP address for gossip, hops and sessions."),
    key("mesh", "advertise", Kind::Address, "(`listen`)", "The address at which the other peers reach it. Required where `listen` is an address of zeros."),
    key("mesh", "seeds", Kind::Texts, "[]", "`HOST:PORT` of peers to join through. Names are resolved again as they change, no seed has to be up, and the peer's own address is ignored."),
    key("mesh", "identity", Kind::Path, "(`certs/NAME`)", "The folder with `ca.pem`, `cert.pem` and `key.pem`, as `warmhop cert peer` writes it."),
    key("mesh", "refuse", Kind::Texts, "[]", "Members that this peer refuses to talk to: a peer's name, or the fingerprint of a certificate, `sha256:` and 64 hexadecimal digits. `warmhop reload` reads the list again. See [trust.md](trust.md)."),
    key("mesh", "cookie_key", Kind::Paths, "(beside the identity)", "The file of the key that authenticates cookies, the same for every peer; or two files: the first makes cookies, and those of both are accepted. See [deploy.md](deploy.md)."),

    key("admin", "listen", Kind::Address, "\"127.0.0.1:9001\"", "The address of the listener. Without a token only loopback is allowed."),
    key("admin", "token", Kind::Text, "(none)", "The bearer token that every request to the listener has to carry, except those for the dashboard's page, `/healthz` and `/readyz` (without what `?verbose` adds). 16 to 256 visible characters: `openssl rand -hex 32`. The commands take it from `WARMHOP_ADMIN_TOKEN`."),

    key("session", "copies", Kind::Number(1, 3), "3", "How many peers keep a copy of each session, as far as so many are alive. Each copy costs memory, and a vote for each change."),
    key("session", "ttl", Kind::Span("1s", "366d"), "\"30m\"", "How long an unused session lives. A longer time takes memory for longer."),
    key("session", "memory", Kind::Size("1MiB", "16384GiB"), "(an eighth of the machine's, or of the control group's)", "The memory for sessions on this peer. From seven eighths of it on, changes are refused."),
    key("session", "without_majority", Kind::OneOf(&["refuse", "serve"]), "\"refuse\"", "What happens while most holders of a session are unreachable: its requests are refused with 503, or it goes on from one copy as a new session that is marked `Warmhop-Session-Forked`."),
    key("session", "state_bytes_max", Kind::Number(1, 1 << 20), "4096", "The most bytes of state that an app may set in a session (`Warmhop-Session`). They are sent with each request: the app's server has to accept a header field of that length."),
    key("session", "stored_response_bytes_max", Kind::Number(0, 1 << 20), "65536", "The longest response, in bytes, that each copy stores to answer a repeated `Idempotency-Key` with."),
    key("session", "redis", Kind::Address, "(none)", "Where the Redis-speaking endpoint for session libraries listens; loopback only. See [redis.md](redis.md)."),
    key("session", "redis_events", Kind::Text, "\"\"", "Which changes of keys that endpoint announces to subscribers, in the letters of Redis' `notify-keyspace-events`: `\"Egx\"` for Spring Session. Configure all peers alike."),

    key("session.cookie", "name", Kind::Text, "\"warmhop\"", "The cookie's name: 1 to 64 letters, digits, `-` and `_`. Load balancers have to know it."),
    key("session.cookie", "same_site", Kind::OneOf(&["strict", "lax", "none"]), "\"lax\"", "Which requests from other sites carry it. Browsers accept `\"none\"` only with `secure`."),
    key("session.cookie", "secure", Kind::Flag, "(behind TLS)", "Whether browsers send it over TLS only."),
    key("session.cookie", "domain", Kind::Text, "(the host asked for)", "The domain of the cookie, which all hosts of the apps are below."),
    key("session.cookie", "route", Kind::OneOf(&["name", "opaque"]), "(`\"name\"`; with `[http] reveal = false`, `\"opaque\"`)", "How the cookie names the peer that the client should come back to: by its name, or by an alias that reveals nothing to clients. `warmhop lb` prints the aliases for load balancers. They are derived from the cookie key: print the configuration again when that changes. See [load-balancers.md](load-balancers.md)."),

    key("log", "access", Kind::Path, "(none)", "Where the access log goes, one line for each request: `\"stderr\"`, or a file. See [observability.md](observability.md)."),
    key("log", "access_format", Kind::OneOf(&["text", "json"]), "(text)", "The format of its lines. On standard error, beside the lines of `run --log json`, the default is JSON."),
    key("log", "access_query", Kind::Flag, "false", "Whether the access log has the query strings, which may hold secrets."),
    key("log", "level", Kind::Text, "(`info` of the peer and its apps)", "What else is logged, in the syntax of `RUST_LOG`: a level, or levels by target, such as `warn,warmhop=debug`. Where that variable is set, it takes precedence."),

    key("run", "threads", Kind::Number(1, 1024), "(one for each core that it may use)", "The number of threads that serve clients."),

    key("app", "name", Kind::Text, "", "The app's name. The same app has the same name on every peer."),
    key("app", "run", Kind::Texts, "(required unless `start = \"never\"`)", "The program and its arguments. It has to serve HTTP on `127.0.0.1:$PORT`."),
    key("app", "dir", Kind::Path, "(the folder of the file)", "The working directory."),
    key("app", "env", Kind::Variables, "{}", "Variables that are added to its environment. The peer itself sets `PORT` and `REDIS_URL`."),
    key("app", "env_file", Kind::Path, "(none)", "A file of `NAME=value` lines, read at each start of a copy; `env` takes precedence."),
    key("app", "inherit_env", Kind::FlagOrNames, "true", "What it inherits from the peer's environment: everything, only `PATH`, or `PATH` and the named variables."),
    key("app", "strip_prefix", Kind::Flag, "false", "Whether the app gets its requests without the `path` that they matched, which is passed in `X-Forwarded-Prefix`."),
    key("app", "version", Kind::Text, "(none)", "The version of the app that a start brings up, such as `1.10.2` or a date. Peers exchange it, and a change of it is a reason to replace a running copy. Versions are compared part by part, numbers by their value. 1 to 64 of `A-Z a-z 0-9 . _ + -`."),
    key("app", "protocol", Kind::OneOf(&["http1", "h2"]), "\"http1\"", "The protocol that it speaks: HTTP/1.1 with upgrades, or HTTP/2 in clear text, as gRPC servers need it."),
    key("app", "user", Kind::Text, "(the peer's)", "The user that it runs as, where the peer is root. See [trust.md](trust.md)."),
    key("app", "group", Kind::Text, "(the user's)", "The group that it runs as."),
    key("app", "start", Kind::OneOf(&["on-request", "at-boot", "never"]), "\"on-request\"", "When a copy starts on this peer. `\"never\"`: requests hop to other peers."),
    key("app", "stop_when_idle", Kind::Span("100ms", "366d"), "(never)", "How long a copy may be without requests before it is stopped."),
    key("app", "keep_ready", Kind::Number(0, 16), "0", "How many copies are kept ready across the mesh, whichever peer clients reach. Each costs the app's memory on one peer."),
    key("app", "session", Kind::OneOf(&["portable", "pinned", "none"]), "\"none\"", "Who keeps its sessions: the mesh; the app's own memory, with each client routed back to its copy; or nobody. See [sessions.md](sessions.md)."),
    key("app", "effects", Kind::OneOf(&["anything", "session-only"]), "\"anything\"", "`\"session-only\"`: the app changes nothing but its session, so an unanswered request may run again."),
    key("app", "max_wait", Kind::Span("0ms", "10m"), "\"30s\"", "How long a request may wait while no peer is ready. After that it gets 503."),
    key("app", "waiting_max", Kind::Number(1, 100_000), "1024", "How many requests may wait on this peer at once. Each keeps a connection open."),
    key("app", "starting_page", Kind::Flag, "true", "Whether a browser is shown the progress of a start instead of waiting for its end."),
    key("app", "stop_grace", Kind::Span("0ms", "10m"), "\"10s\"", "How long a copy may take to exit after SIGTERM before it is killed."),
    key("app", "head_timeout", Kind::Span("100ms", "1d"), "(none)", "How long the head of a response may take. After that the client gets 504, and the health of the copy is checked."),
    key("app", "concurrency", Kind::Number(1, 100_000), "(as many as come)", "How many requests one copy serves at once. Further ones go to other ready copies, or wait."),
    key("app", "concurrency_per_address", Kind::Number(1, 100_000), "(all but one of `concurrency`; all of fewer than 8)", "How many of them may come from one client address, or from one IPv6 /64, streams that are open included. Further ones wait, while those of others are served. A proxy that is not one of `trusted_proxies` is one address."),

    key("app.match", "host", Kind::TextOrTexts, "(any)", "The host of the request, without port, or a list of them. `*.b.example` is every name that is one label longer than `b.example`."),
    key("app.match", "path", Kind::Text, "\"/\"", "A prefix of its path, in whole segments."),

    key("app.session", "pinned", Kind::Flag, "(required)", "`true`: the app keeps its sessions in its own memory."),
    key("app.session.by", "header", Kind::Text, "(none)", "A header field in which the app's response sets the id and each request returns it, such as `Mcp-Session-Id`."),
    key("app.session.by", "query", Kind::Text, "(none)", "A query parameter, such as `sid` of engine.io or `session_hash` of Gradio; it is also read from a small JSON body."),
    key("app.session.by", "cookie", Kind::Text, "(none)", "A cookie that the app sets."),
    key("app.session.by", "path", Kind::Text, "(none)", "A path of the app with the id as a segment, such as `/gradio_api/call/*/{event_id}`; `*` is any segment. The id is learnt from a small JSON answer, where it has the name in braces."),

    key("app.limits", "memory", Kind::Size("16MiB", "1048576GiB"), "(none)", "The most data, in bytes, that each of its processes may hold; with `cgroup`, the most memory of all of them."),
    key("app.limits", "files", Kind::Number(1, 1 << 30), "(the peer's)", "How many files each of its processes may have open."),
    key("app.limits", "cpu", Kind::Number(1, 1024), "(all)", "How many processors it may run on; with `cgroup`, the time of how many it may use."),
    key("app.limits", "cgroup", Kind::Flag, "(each process for itself)", "Whether `memory` and `cpu` hold for all processes of a copy together, by a control group (cgroup v2) that the peer makes below its own. See [trust.md](trust.md)."),

    key("app.ready", "path", Kind::Text, "(a connection is enough)", "The path of the probe."),
    key("app.ready", "host", Kind::Text, "(that of `match`)", "The `Host` of the probe."),
    key("app.ready", "status", Kind::Statuses, "(2xx and 3xx)", "The statuses that count as ready."),
    key("app.ready", "timeout", Kind::Span("100ms", "1h"), "\"1m\"", "How long a start may take before it counts as failed."),
    key("app.ready", "every", Kind::Span("10ms", "1m"), "\"100ms\"", "The interval between probes. A shorter one costs processor time of the app."),
    key("app.ready", "probe_timeout", Kind::Span("100ms", "10m"), "\"2s\"", "How long to wait for an answer before the next probe."),

    key("app.alive", "path", Kind::Text, "(that of `ready`)", "The path of the health check."),
    key("app.alive", "every", Kind::Span("100ms", "1h"), "\"5s\"", "The interval between checks."),
    key("app.alive", "timeout", Kind::Span("100ms", "10m"), "\"1500ms\"", "How long its answer may take."),
    key("app.alive", "misses", Kind::Number(1, 100), "3", "After how many failed checks in a row a copy is taken out of service."),
    key("app.alive", "restart", Kind::Flag, "true", "Whether a copy that is out of service is replaced by a new one."),

    key("app.scale", "at", Kind::Fraction, "0.8", "From which fraction of its `concurrency` on a copy is busy. A lower one starts copies sooner, at less load."),
    key("app.scale", "max", Kind::Number(2, 64), "3", "The most copies that load may bring up. Each costs the app's memory on one peer."),

    key("app.wake", "not_user_agent", Kind::Texts, "(none)", "Substrings of `User-Agent`, in any case, such as `kube-probe`."),
    key("app.wake", "not_path", Kind::Texts, "(none)", "Paths, such as `/healthz`, or prefixes of paths, such as `/status/*`."),
];
