//! Mistakes in a configuration, and the whole message for each: text of a file, and what follows its
//! name in the message.

use super::{FILE, problems};

#[test]
fn a_mistake_names_its_place_its_key_and_its_remedy() {
    for (text, message) in OF_THE_PEER.iter().chain(OF_SESSIONS_AND_LOGS).chain(OF_APPS) {
        assert_eq!(problems(text), [format!("{FILE}{message}")], "{text}");
    }
}

/// Of the peer, its listeners and the mesh.
const OF_THE_PEER: &[(&str, &str)] = &[
    (
        "[peer]\nname = 'p'\n[http]\nconnections_per_address = 0",
        ":4:27: http.connections_per_address: 0 is not valid; expected a whole number from 1 to 1048576",
    ),
    (
        "[peer]\nname = 'p'\n[http]\nbody_timeout = '0s'",
        ":4:16: http.body_timeout: \"0s\" is not valid; expected a span from 1s to 1d",
    ),
    (
        "[peer]\nname = 'p'\n[http]\nproxy_protocol = 'v2'",
        ":4:18: http.proxy_protocol: \"v2\" is not valid; expected true or false",
    ),
    (
        "[peer]\nname = 'p'\n[mesh]\nrefuse = ['peer 9']",
        ":4:11: mesh.refuse[0]: \"peer 9\" is not valid; expected 1 to 32 of the characters A-Z a-z 0-9 _ -, or \"sha256:\" and a certificate's fingerprint",
    ),
    (
        "[peer]\nname = 'p'\n[mesh]\ncookie_key = []",
        ":4:14: mesh.cookie_key: 0 files are named; name one file, or two: the first makes cookies, and those of both are believed",
    ),
    (
        "[peer]\nname = 'p'\n[http]\nmemory = '1MB'",
        ":4:10: http.memory: \"1MB\" is not valid; expected a size from 1MiB to 1024GiB, such as \"256MiB\"",
    ),
    (
        "[peer]\nname = 'p'\n[http]\ntrusted_proxies = ['10.0.0.0/40']",
        ":4:20: http.trusted_proxies[0]: \"10.0.0.0/40\" is not valid; expected an address or a network, such as \"10.0.0.7\" or \"10.0.0.0/8\"",
    ),
    (
        "",
        ": peer.name: the peer has no name; name this peer uniquely within its cluster: [peer] name = \"peer-1\"",
    ),
    (
        "[peer]\nzone = 'a'",
        ":1:1: peer.name: the peer has no name; name this peer uniquely within its cluster: [peer] name = \"peer-1\"",
    ),
    (
        "[peer]\nname = 'a.b'",
        ":2:8: peer.name: \"a.b\" is not valid; expected 1 to 32 of the characters A-Z a-z 0-9 _ -",
    ),
    ("[peer]\nname = 7", ":2:8: peer.name: 7 is not valid; expected a text in quotes"),
    (
        "[peer]\nname = 'p'\n[http]\nlisten = ['127.0.0.1:8081', 'localhost:80']",
        ":4:29: http.listen[1]: \"localhost:80\" is not valid; expected an IP address and a port, such as \"127.0.0.1:8081\" or \"[::1]:8081\"",
    ),
    (
        "[peer]\nname = 'p'\n[mesh]\nlisten = '0.0.0.0:7001'",
        ":4:10: mesh.advertise: the peer listens on 0.0.0.0:7001 and does not say where it can be reached; add advertise = \"ADDRESS:PORT\" as the other peers see it",
    ),
    (
        "[peer]\nname = 'p'\n[mesh]\nlisten = '0.0.0.0:7001'\nadvertise = '0.0.0.0:7001'",
        ":5:13: mesh.advertise: other peers cannot send to an address of zeros or to port 0; name the address and port that they reach this peer at",
    ),
    (
        "[peer]\nname = 'p'\n[mesh]\nseeds = ['peers.internal']",
        ":4:10: mesh.seeds[0]: \"peers.internal\" is not valid; expected HOST:PORT, such as \"10.0.0.1:7001\" or \"peers.internal:7001\"",
    ),
    (
        "[peer]\nname = 'p'\n[mesh]\nlisen = '127.0.0.1:7001'",
        ":4:1: mesh.lisen: there is no such key; did you mean listen?",
    ),
    (
        "[peer]\nname = 'p'\n[mesh]\nquorum = 3",
        ":4:1: mesh.quorum: there is no such key; the keys here are advertise, cookie_key, identity, listen, refuse, seeds",
    ),
    (
        "[peer]\nname = 'p'\n[admin]\nlisten = '0.0.0.0:9001'",
        ":4:10: admin.listen: 0.0.0.0:9001 can be reached from other machines, and anyone there could stop apps; listen on 127.0.0.1, or set [admin] token",
    ),
    (
        "[peer]\nname = 'p'\n[admin]\ntoken = 'short'",
        ":4:9: admin.token: a token has 16 to 256 visible ASCII characters; make one with `openssl rand -hex 32`",
    ),
    (
        "[peer]\nname = 'p'\n[http]\nlisten = ['127.0.0.1:9001']",
        ": admin.listen: 127.0.0.1:9001 is http.listen[0] already; choose another port",
    ),
    (
        "[peer]\nname = 'p'\n[http]\ntls = { cert = 'c.pem' }",
        ":4:7: http.tls.key: there is no private key; tls = { cert = \"cert.pem\", key = \"key.pem\" }",
    ),
];

/// Of sessions, the log and the threads.
const OF_SESSIONS_AND_LOGS: &[(&str, &str)] = &[
    (
        "[peer]\nname = 'p'\n[sesion]\ncopies = 3",
        ":3:2: sesion: there is no such key; did you mean session?",
    ),
    (
        "[peer]\nname = 'p'\n[session]\nredis = '0.0.0.0:6401'",
        ":4:9: session.redis: 0.0.0.0:6401 can be reached from other machines, and it has no passwords; listen on 127.0.0.1: it is for the apps of this machine",
    ),
    (
        "[peer]\nname = 'p'\n[session]\ncopies = 4",
        ":4:10: session.copies: 4 is not valid; expected a whole number from 1 to 3",
    ),
    (
        "[peer]\nname = 'p'\n[session]\nmemory = '1.5 GB'",
        ":4:10: session.memory: \"1.5 GB\" is not valid; expected a size from 1MiB to 16384GiB, such as \"512MiB\"",
    ),
    (
        "[peer]\nname = 'p'\n[run]\nthreads = 0",
        ":4:11: run.threads: 0 is not valid; expected a whole number from 1 to 1024",
    ),
    (
        "[peer]\nname = 'p'\n[log]\naccess = 'stdout'",
        ":4:10: log.access: \"stdout\" is not valid; expected \"stderr\" or a file, such as \"access.log\"",
    ),
    (
        "[peer]\nname = 'p'\n[session]\nttl = '30 minutes'",
        ":4:7: session.ttl: \"30 minutes\" is not valid; expected a span of time such as \"250ms\", \"30s\", \"10m\" or \"1h\"",
    ),
    (
        "[peer]\nname = 'p'\n[session]\nttl = '10ms'",
        ":4:7: session.ttl: \"10ms\" is not valid; expected a span from 1s to 366d",
    ),
    (
        "[peer]\nname = 'p'\n[session]\ncookie = { name = 'a b' }",
        ":4:19: session.cookie.name: it is no cookie's name; use 1 to 64 letters, digits, - and _",
    ),
    (
        "[peer]\nname = 'p'\n[session.cookie]\nname = '__Secure-a'\nsecure = false",
        ":5:10: session.cookie.secure: browsers take a cookie with this prefix only if it is Secure; leave secure out, or choose a name without the prefix",
    ),
    (
        "[peer]\nname = 'p'\n[session]\nwithout_majority = 'fork'",
        ":4:20: session.without_majority: \"fork\" is not valid; expected \"refuse\" or \"serve\"",
    ),
];

/// Of apps.
const OF_APPS: &[(&str, &str)] = &[
    (
        "[peer]\nname = 'p'\n[[app]]\nname = 'x'\nrun = ['sh']\nlimits = { memory = '1MiB' }",
        ":6:21: app.x.limits.memory: \"1MiB\" is not valid; expected a size from 16MiB to 1048576GiB, such as \"256MiB\"",
    ),
    (
        "[peer]\nname = 'p'\n[app]\nname = 'x'",
        ":3:1: app: a table is not valid; expected an array of tables: [[app]]",
    ),
    (
        "[peer]\nname = 'p'\n[[app]]\nrun = ['sh']",
        ":3:1: app[0].name: the app has no name; name it: [[app]] name = \"shop\"",
    ),
    (
        "[peer]\nname = 'p'\n[[app]]\nname = 'x'",
        ":3:1: app.x.run: there is nothing to run; add run = [\"PROGRAM\", \"ARGUMENT\"], or start = \"never\" where other peers run it",
    ),
    (
        "[peer]\nname = 'p'\n[[app]]\nname = 'x'\nrun = []",
        ":5:7: app.x.run: there is nothing to run; name the program: run = [\"node\", \"server.js\"]",
    ),
    (
        "[peer]\nname = 'p'\n[[app]]\nname = 'x'\nrun = 'node server.js'",
        ":5:7: app.x.run: \"node server.js\" is not valid; expected an array: [\"node\", \"server.js\"]",
    ),
    (
        "[peer]\nname = 'p'\n[[app]]\nname = 'x'\nrun = ['sh']\nsession = 'postal'",
        ":6:11: app.x.session: \"postal\" is not valid; expected \"portable\" or \"pinned\" or \"none\"",
    ),
    (
        "[peer]\nname = 'p'\n[[app]]\nname = 'x'\nrun = ['sh']\nenv = { PORT = '80' }",
        ":6:16: app.x.env.PORT: warmhop sets this variable itself, to the port that it chooses for the app; remove it, and let the app listen on 127.0.0.1:$PORT",
    ),
    (
        "[peer]\nname = 'p'\n[session]\nredis = '127.0.0.1:6401'\n[[app]]\nname = 'x'\nrun = ['sh']\nenv = { REDIS_URL = 'redis://db' }",
        ":8:21: app.x.env.REDIS_URL: warmhop sets this variable itself, to the address of [session] redis; remove it, or name a Redis of the app's own in another variable",
    ),
    (
        "[peer]\nname = 'p'\n[[app]]\nname = 'x'\nrun = ['sh']\nmatch = { host = 'http://shop' }",
        ":6:18: app.x.match.host: \"http://shop\" is not valid; expected a host without scheme and port, such as \"shop.example.com\", or all of one label more: \"*.example.com\"",
    ),
    (
        "[peer]\nname = 'p'\n[[app]]\nname = 'x'\nrun = ['sh']\nready = { path = 'healthz' }",
        ":6:18: app.x.ready.path: \"healthz\" is not valid; expected a path that begins with /, without query, such as /shop",
    ),
    (
        "[peer]\nname = 'p'\n[[app]]\nname = 'x'\nrun = ['sh']\nready = '/healthz'",
        ":6:9: app.x.ready: \"/healthz\" is not valid; expected a table: [app.x.ready]",
    ),
    (
        "[peer]\nname = 'p'\n[[app]]\nname = 'x'\nrun = ['sh']\nstop_when_idel = '1m'",
        ":6:1: app.x.stop_when_idel: there is no such key; did you mean stop_when_idle?",
    ),
    (
        "[peer]\nname = 'p'\n[[app]]\nname = 'x'\nrun = ['sh']\n[[app]]\nname = 'x'\nrun = ['sh']\nmatch = { path = '/x' }",
        ":6:1: app.x.name: line 3 names an app x already; give each app its own name",
    ),
    (
        "[peer]\nname = 'p'\n[[app]]\nname = 'x'\nrun = ['sh']\n[[app]]\nname = 'y'\nrun = ['sh']\nmatch = { path = '/' }",
        ":9:9: app.y.match: line 3 gives the app x the same requests: any host, path /; give one of them another host or path",
    ),
];
