//! Real load balancers in front of a mesh, configured by what `warmhop lb` prints and nothing else
//! that concerns the mesh.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use serde_json::{Value as Json, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use toml::Table;
use warmhop_testbed::client::{Client, Reply};
use warmhop_testbed::ports::Reservation;
use warmhop_testbed::process::ProcessId;
use warmhop_testbed::workspace;

use crate::front_doors::Doors;
use crate::installed::{Skipped, Tested, debian, debian_file, home, python};
use crate::support::{BOUND, QUICK, Shopper, World, program_built, shop, until};
use crate::{streams, test};

/// The promises, in the order in which they are looked at.
const PROMISES: [&str; 7] = [
    "its own checker accepts the configuration",
    "peers whose app is cold are in rotation",
    "a client comes back to one peer, which serves it",
    "a WebSocket passes",
    "a peer that leaves costs no client an error",
    "the loss of a client's peer costs it no change of its session",
    "a peer that comes back is in rotation",
];

/// The tests of this module.
pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for kind in ["haproxy", "nginx", "apache", "envoy"] {
        for affinity in ["mesh", "own"] {
            let name = format!("balancer_{kind}_follows_the_cookie_of_{affinity}");
            trials.push(test(&name, move || follows(kind, affinity)));
        }
        let name = format!("balancer_{kind}_passes_requests_as_they_were_sent");
        trials.push(test(&name, move || passes(kind)));
        if ["haproxy", "envoy"].contains(&kind) {
            let name = format!("balancer_{kind}_lets_grpc_calls_of_every_kind_pass");
            trials.push(test(&name, move || streams::grpc(Some(kind))));
        }
        let name = format!("balancer_{kind}_reaches_doors_with_tls_as_the_documentation_says");
        trials.push(test(&name, move || with_tls(kind)));
        let name = format!("balancer_{kind}_accepts_peers_of_any_name");
        trials.push(test(&name, move || names(kind)));
    }
    trials.push(test("balancers_are_as_their_table_says", table));
    trials
}

/// A running balancer; ends with this.
pub(crate) struct Balancer {
    pub(crate) addr: SocketAddr,
    process: Child,
    version: String,
    folder: PathBuf,
    _port: Reservation,
}

impl Drop for Balancer {
    fn drop(&mut self) {
        // Its workers would outlive it.
        let workers = ProcessId::of(self.process.id()).map(ProcessId::descendants);
        let _ = self.process.kill();
        let _ = self.process.wait();
        for worker in workers.into_iter().flatten() {
            let _ = worker.signal(Signal::SIGKILL);
        }
        // What a failed test wrote stays to be looked at.
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

/// Where its results are, for the table.
fn results(kind: &str, affinity: &str) -> PathBuf {
    home().join(format!("balancer-{kind}-{affinity}"))
}

fn first_line(output: &std::process::Output) -> String {
    let said = [&output.stdout[..], &output.stderr[..]].concat();
    let text = String::from_utf8_lossy(&said).trim().to_owned();
    text.lines().next().unwrap_or_default().to_owned()
}

fn run(command: &mut Command) -> std::process::Output {
    tokio::task::block_in_place(|| command.output()).expect("it starts")
}

fn checked(command: &mut Command) {
    let output = run(command);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the configuration is refused: {said}\n{output:?}");
}

/// What the peer at 0 prints.
fn printed(kind: &str, affinity: &str, listen: SocketAddr, world: &World) -> String {
    let listen = listen.to_string();
    let printed = world.warmhop(0, &["lb", kind, "--affinity", affinity, "--listen", &listen]);
    assert!(printed.status.success(), "{printed:?}");
    String::from_utf8(printed.stdout).unwrap()
}

/// A folder for one balancer.
fn fresh_folder(kind: &str) -> PathBuf {
    static FOLDERS: AtomicU32 = AtomicU32::new(0);
    let number = FOLDERS.fetch_add(1, Ordering::Relaxed);
    let folder = home().join(format!("run-{kind}-{}-{number}", std::process::id()));
    fs::create_dir_all(folder.join("logs")).unwrap();
    folder
}

/// Has the balancer's own checker accept the recipe; how it is started, and its version.
fn accepted(
    kind: &str,
    recipe: &str,
    addr: SocketAddr,
    folder: &Path,
) -> Result<(Command, String), Skipped> {
    let file = folder.join("config");
    match kind {
        "haproxy" => haproxy(recipe, &file),
        "nginx" => nginx(recipe, folder, &file),
        "apache" => apache(recipe, addr, folder, &file),
        "envoy" => envoy(recipe, &file),
        other => unreachable!("{other} is none of the four"),
    }
}

/// Starts the real balancer with what the peer at 0 prints for it, and waits until it serves.
pub(crate) async fn start(kind: &str, affinity: &str, world: &World) -> Result<Balancer, Skipped> {
    let balancer = launch(kind, |listen| printed(kind, affinity, listen, world))?;
    serves(balancer.addr).await;
    Ok(balancer)
}

/// Starts the real balancer with the recipe for an address.
pub(crate) fn launch(
    kind: &str,
    recipe: impl FnOnce(SocketAddr) -> String,
) -> Result<Balancer, Skipped> {
    let port = Reservation::new().unwrap();
    let addr = port.peer(0).http;
    let folder = fresh_folder(kind);
    let (mut command, version) = accepted(kind, &recipe(addr), addr, &folder)?;
    let log = fs::File::create(folder.join("log")).unwrap();
    let process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
    Ok(Balancer { addr, process, version, folder, _port: port })
}

pub(crate) async fn serves(addr: SocketAddr) {
    until("the balancer answers", async || {
        let reply = Client::new().get(addr, "/.well-known/warmhop/readyz").await.ok()?;
        reply.status.is_success().then_some(())
    })
    .await;
}

fn haproxy(recipe: &str, file: &Path) -> Result<(Command, String), Skipped> {
    fs::write(file, recipe).unwrap();
    let version = first_line(&run(debian("usr/sbin/haproxy")?.arg("-v")));
    checked(debian("usr/sbin/haproxy")?.args(["-c", "-f"]).arg(file));
    let mut command = debian("usr/sbin/haproxy")?;
    // In the foreground, one process, which ends on a signal.
    command.args(["-db", "-f"]).arg(file);
    Ok((command, version))
}

fn nginx(recipe: &str, folder: &Path, file: &Path) -> Result<(Command, String), Skipped> {
    let at = folder.display();
    let whole = format!(
        "daemon off;\nmaster_process off;\npid {at}/pid;\nerror_log {at}/error.log;\nevents {{}}\n\
         http {{\naccess_log off;\nclient_body_temp_path {at}/body;\nproxy_temp_path {at}/proxy;\n\
         fastcgi_temp_path {at}/fastcgi;\nuwsgi_temp_path {at}/uwsgi;\nscgi_temp_path {at}/scgi;\n\
         {recipe}}}\n"
    );
    fs::write(file, whole).unwrap();
    let version = first_line(&run(debian("usr/sbin/nginx")?.arg("-v")));
    let with = |command: &mut Command| {
        command.arg("-p").arg(folder).arg("-e").arg(folder.join("error.log")).arg("-c").arg(file);
    };
    let mut check = debian("usr/sbin/nginx")?;
    with(&mut check);
    checked(check.arg("-t"));
    let mut command = debian("usr/sbin/nginx")?;
    with(&mut command);
    Ok((command, version))
}

fn apache(
    recipe: &str,
    addr: SocketAddr,
    folder: &Path,
    file: &Path,
) -> Result<(Command, String), Skipped> {
    let modules = debian_file("usr/lib/apache2/modules")?;
    let mut whole = format!(
        "ServerRoot {at}\nDefaultRuntimeDir {at}\nPidFile {at}/pid\nErrorLog {at}/error.log\n\
         Listen {addr}\nServerName localhost\nMutex file:{at} default\n",
        at = folder.display()
    );
    for name in [
        "mpm_event",
        "authz_core",
        "headers",
        "proxy",
        "proxy_http",
        "proxy_balancer",
        "proxy_hcheck",
        "watchdog",
        "slotmem_shm",
        "lbmethod_byrequests",
        "ssl",
    ] {
        let path = modules.join(format!("mod_{name}.so"));
        // Some are built into the program.
        if path.exists() {
            whole.push_str(&format!("LoadModule {name}_module {}\n", path.display()));
        }
    }
    whole.push_str(&format!("<VirtualHost {addr}>\n{recipe}</VirtualHost>\n"));
    fs::write(file, whole).unwrap();
    let version = first_line(&run(debian("usr/sbin/apache2")?.arg("-v")));
    checked(debian("usr/sbin/apache2")?.args(["-t", "-f"]).arg(file));
    let mut command = debian("usr/sbin/apache2")?;
    command.args(["-D", "FOREGROUND", "-f"]).arg(file);
    Ok((command, version))
}

fn envoy(recipe: &str, file: &Path) -> Result<(Command, String), Skipped> {
    let file = file.with_extension("yaml");
    fs::write(&file, recipe).unwrap();
    let version = first_line(&run(python("envoy")?.arg("--version")));
    checked(python("envoy")?.args(["--mode", "validate", "-c"]).arg(&file));
    let mut command = python("envoy")?;
    command.args(["--concurrency", "1", "--disable-hot-restart", "-c"]).arg(&file);
    Ok((command, version))
}

/// Looks at every promise, with a mesh of three.
async fn follows(kind: &'static str, affinity: &'static str) -> Tested {
    let _ = fs::remove_file(results(kind, affinity));
    let mut world = World::new(3, shop(QUICK, "")).await;
    world.expect_errors();
    world.warm(2).await;
    // 1. It starts only if its own checker has accepted the configuration.
    let balancer = start(kind, affinity, &world).await?;
    let addr = balancer.addr;

    // 2. The peer that the balancer chooses answers, cold or not, and names itself.
    let mut routes = std::collections::BTreeSet::new();
    for _ in 0..12 {
        let mut client = Client::new();
        let reply = client.get(addr, "/cart").await.unwrap().ok().unwrap();
        assert!(reply.peer().is_some());
        let mut shopper = Shopper { client, acknowledged: 0 };
        shopper.add(addr).await;
        routes.insert(shopper.client.route().expect("a cookie").to_owned());
    }
    assert!(routes.len() > 1, "only {routes:?} were ever chosen");

    // 3. After the cut-over a client's own peer serves it.
    for index in 0..3 {
        world.warm(index).await;
    }
    let mut shopper = Shopper::default();
    shopper.add(addr).await;
    let mine = settled(&mut shopper, addr).await;
    let again = shopper.check(addr).await;
    let cookies = again.headers.get_all("set-cookie");
    assert_eq!(cookies.iter().count(), 0, "it has what it needs: {again:?}");

    // 4. A WebSocket.
    echoes(addr).await;

    // 5. A peer leaves in good order under load, and comes back.
    leaves_and_comes_back(&mut world, &mut shopper, addr, &mine).await;
    // 6. The client's peer is lost, and comes back.
    is_lost_and_comes_back(&mut world, &mut shopper, addr).await;
    fs::write(results(kind, affinity), &balancer.version).unwrap();
    Ok(())
}

async fn leaves_and_comes_back(
    world: &mut World,
    shopper: &mut Shopper,
    addr: SocketAddr,
    mine: &str,
) {
    let leaving = (0..3).find(|index| world.name(*index) == mine).unwrap();
    // One request is in the middle of its answer, and so it stays for some seconds.
    let mut slow = shopper.client.clone();
    let slow = slow.call(Method::GET, "/slow?ms=4000").open(addr).await.unwrap();
    assert_eq!(slow.headers()["warmhop-peer"], world.name(leaving));
    // Enough clients that several find it gone at the same moment.
    let load = Load::begin(addr, 16);
    load.answers(40).await;
    let status = world.mesh.stop(leaving).await.unwrap();
    assert!(status.success(), "{status}");
    let whole = slow.into_body().collect().await.expect("what has begun is brought to its end");
    assert!(whole.to_bytes().starts_with(b"line 0"));
    load.answers(40).await;
    let (answered, failed) = load.end().await;
    assert!(failed.is_empty(), "of {answered} requests: {failed:?}");
    shopper.add(addr).await;
    world.mesh.start(leaving).unwrap();
    world.mesh.formed().await.unwrap();
    world.warm(leaving).await;
}

async fn is_lost_and_comes_back(world: &mut World, shopper: &mut Shopper, addr: SocketAddr) {
    let mine = settled(shopper, addr).await;
    // The session is held by three again.
    is_whole(shopper, world, addr).await;
    let lost = (0..3).find(|index| world.name(*index) == mine).unwrap();
    world.mesh.kill(lost).unwrap();
    shopper.acknowledged += 1;
    let wanted = shopper.acknowledged;
    let reply = until("the session goes on", async || {
        let call = shopper.client.call(Method::POST, "/cart/add?item=book");
        let call = call.header("idempotency-key", "\"after-the-loss\"");
        call.send(addr).await.ok().filter(|reply| reply.status.is_success())
    })
    .await;
    assert_eq!(reply.json().unwrap()["count"], wanted, "nothing lost, nothing doubled");
    assert_ne!(reply.peer(), Some(mine.as_str()));
    settled(shopper, addr).await;

    world.mesh.start(lost).unwrap();
    world.mesh.formed().await.unwrap();
    world.warm(lost).await;
    until("the peer that came back is chosen", async || {
        let reply = Client::new().get(addr, "/cart").await.ok()?;
        (reply.peer() == Some(world.name(lost))).then_some(())
    })
    .await;
}

/// An app that tells what it was sent.
const ECHO: &str = r#"
import http.server, json, os
class Echo(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def answer(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        fields = [[name.lower(), value] for name, value in self.headers.items()]
        body = json.dumps({"path": self.path, "fields": fields, "bytes": len(body)}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    do_GET = do_POST = answer
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Echo).serve_forever()
"#;

/// What arrives at an app, against what was sent to the balancer.
async fn passes(kind: &'static str) -> Tested {
    let python = python("python")?.get_program().to_str().unwrap().to_owned();
    let mut app: Table = "name = 'shop'\nmatch = { path = '/' }".parse().unwrap();
    app.insert("run".into(), vec![python, "-c".into(), ECHO.into()].into());
    let trusting = |_, config: &mut Table| {
        let http = config["http"].as_table_mut().unwrap();
        http.insert("trusted_proxies".into(), vec!["127.0.0.1".to_owned()].into());
    };
    let world = World::with(1, vec![app], "", trusting).await;
    world.warm(0).await;
    let balancer = start(kind, "mesh", &world).await?;
    let addr = balancer.addr;

    for path in [
        "/a%2Fb",
        "/a//b",
        "/a+b%2Bc",
        "/%7Ex/~y",
        "/a%20b/%E4%BD%A0",
        "/a;b=c,d@e:f!g",
        "/q?a=%2F&b=x+y%20z&&c",
        "/q?next=http://a.example/?b",
    ] {
        let reply = Client::new().get(addr, path).await.unwrap();
        assert_eq!(reply.status, StatusCode::OK, "{path}: {reply:?}");
        assert_eq!(reply.json().unwrap()["path"], path);
    }

    // Who the client is, the balancer says, and nobody else.
    let mut client = Client::new();
    let mut call = client.call(Method::GET, "/").header("host", "shop.test");
    for (name, value) in [
        ("forwarded", "for=192.0.2.66;proto=https;host=evil.test"),
        ("x-forwarded-for", "192.0.2.66"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "evil.test"),
        ("x-request-id", "asked-for"),
    ] {
        call = call.header(name, value);
    }
    let reply = call.send(addr).await.unwrap();
    assert_eq!(reply.request_id(), Some("asked-for"));
    let answer = reply.json().unwrap();
    let field = |name: &str| -> String {
        let fields = answer["fields"].as_array().unwrap().iter();
        let values = fields.filter(|field| field[0] == name).map(|field| field[1].as_str());
        values.map(Option::unwrap).collect::<Vec<_>>().join(", ")
    };
    assert_eq!(field("forwarded"), "for=127.0.0.1;proto=http;host=\"shop.test\"");
    assert_eq!(field("x-forwarded-proto"), "http");
    assert_eq!(field("x-forwarded-host"), "shop.test");
    assert_eq!(field("host"), "shop.test");
    // What the client says comes first, what the balancer and the peer say last.
    let forwarded = field("x-forwarded-for");
    let [said, balancer_says, peer_says] = forwarded.split(',').collect::<Vec<_>>()[..] else {
        panic!("{forwarded}");
    };
    assert_eq!((said, peer_says.trim()), ("192.0.2.66", "127.0.0.1"));
    assert!(balancer_says.trim().parse::<std::net::IpAddr>().is_ok(), "{forwarded}");

    let big = client.call(Method::POST, "/").body(vec![b'x'; 5_000_000]).send(addr).await.unwrap();
    assert_eq!(big.status, StatusCode::OK, "{big:?}");
    assert_eq!(big.json().unwrap()["bytes"], 5_000_000);

    // A client that waits for `100 Continue` gets it.
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let head = "POST / HTTP/1.1\r\nhost: shop.test\r\nconnection: close\r\n\
                expect: 100-continue\r\ncontent-length: 3\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut first = [0; 25];
    tokio::time::timeout(BOUND, stream.read_exact(&mut first)).await.expect("an answer").unwrap();
    assert_eq!(&first, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"abc").await.unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    assert!(rest.starts_with("HTTP/1.1 200 ") && rest.contains("\"bytes\": 3"), "{rest}");
    Ok(())
}

/// What the documentation has done to a recipe where front doors have TLS, by a shell.
fn for_tls(kind: &str, recipe: &str, ca: &Path, name: &str) -> String {
    let page = fs::read_to_string(workspace().join("docs/load-balancers.md")).unwrap();
    let (_, page) = page.split_once(&format!("\nwarmhop lb {kind} | sed ")).expect("a command");
    // It ends where the next one begins, or the block does.
    let ends = ["\nwarmhop lb ", "\n```"].into_iter().filter_map(|end| page.find(end));
    let command = format!("sed {}", &page[..ends.min().unwrap()]);
    let mut shell = Command::new("sh");
    shell.args(["-c", &command]).env("CA", ca).env("NAME", name);
    let mut shell = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // It is smaller than a pipe, so that nobody waits for anybody.
    shell.stdin.take().unwrap().write_all(recipe.as_bytes()).unwrap();
    let output = shell.wait_with_output().unwrap();
    assert!(output.status.success(), "{command}");
    String::from_utf8(output.stdout).unwrap()
}

/// Front doors with TLS, which the balancer has prove who they are.
async fn with_tls(kind: &'static str) -> Tested {
    let doors = Doors::open(true).await;
    let trusting = |ca: &Path| {
        launch(kind, |listen| {
            let recipe = printed(kind, "mesh", listen, &doors.world);
            assert!(recipe.contains("docs/load-balancers.md"), "{recipe}");
            for_tls(kind, &recipe, ca, "localhost")
        })
    };
    let balancer = trusting(&doors.cert)?;
    serves(balancer.addr).await;
    for host in ["localhost", "shop.test", "localhost", "shop.test"] {
        let mut client = Client::new();
        let call = client.call(Method::GET, "/cart").header("host", host);
        let reply = call.send(balancer.addr).await.unwrap();
        assert_eq!(reply.status, StatusCode::OK, "{host}: {reply:?}");
    }
    echoes(balancer.addr).await;
    drop(balancer);

    let stranger = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let other = doors.cert.with_file_name("other.pem");
    fs::write(&other, stranger.cert.pem()).unwrap();
    let balancer = trusting(&other)?;
    let get = async || Client::new().get(balancer.addr, "/cart").await.ok();
    let reply = until("the balancer answers", get).await;
    assert!(reply.status.is_server_error(), "a door that nobody vouches for: {reply:?}");
    Ok(())
}

async fn echoes(addr: SocketAddr) {
    let stream = TcpStream::connect(addr).await.unwrap();
    let connect = tokio_tungstenite::client_async(format!("ws://{addr}/ws"), stream);
    let (mut socket, _) = tokio::time::timeout(BOUND, connect).await.unwrap().unwrap();
    socket.send(Message::text("hello")).await.unwrap();
    let back = tokio::time::timeout(BOUND, socket.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(back, Message::text("hello"));
    let _ = socket.close(None).await;
}

/// Peers whose names are words of a balancer's own, or differ in case alone.
async fn names(kind: &'static str) -> Tested {
    let names =
        ["any", "default", "include", "volatile", "server", "A", "a", "-", "_", "0", "all", "o k"];
    let peers: Vec<Json> = (names.iter().zip(1..))
        .map(|(name, port)| json!({"name": name, "http": format!("127.0.0.1:{port}")}))
        .collect();
    let status = json!({"peer": {"name": "peer_any", "http": ["127.0.0.1:99"]}, "peers": peers});
    let answer = status.to_string();
    let admin = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", admin.local_addr().unwrap());
    let answering = tokio::spawn(async move {
        loop {
            let (mut stream, _) = admin.accept().await.unwrap();
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length";
            let text = format!("{head}: {}\r\n\r\n{answer}", answer.len());
            let _ = stream.write_all(text.as_bytes()).await;
        }
    });
    let warmhop = program_built("warmhop");
    let port = Reservation::new().unwrap();
    let addr = port.peer(0).http;
    for affinity in ["mesh", "own"] {
        let mut command = Command::new(&warmhop);
        command.args(["lb", kind, "--affinity", affinity, "--admin", &url]);
        let output = run(command.args(["--listen", &addr.to_string()]));
        assert!(output.status.success(), "{output:?}");
        let recipe = String::from_utf8(output.stdout).unwrap();
        assert!(recipe.contains("include") && !recipe.contains("o k"), "{recipe}");
        let folder = fresh_folder(kind);
        accepted(kind, &recipe, addr, &folder)?;
        fs::remove_dir_all(folder).unwrap();
    }
    answering.abort();
    Ok(())
}

/// Waits until one peer has served the client five times in a row; its name.
async fn settled(shopper: &mut Shopper, addr: SocketAddr) -> String {
    until("one peer serves the client", async || {
        let mut peers = std::collections::BTreeSet::new();
        for _ in 0..5 {
            let reply: Reply = shopper.check(addr).await;
            peers.insert(reply.peer().expect("peers name themselves").to_owned());
            // The hop that it came by is known to the mesh and the balancer alone.
            if reply.header("proxy-status").is_some_and(|it| it.contains("next-hop")) {
                return None;
            }
        }
        let first = peers.pop_first()?;
        peers.is_empty().then_some(first)
    })
    .await
}

/// Waits until three living peers hold the client's session.
async fn is_whole(shopper: &mut Shopper, world: &World, addr: SocketAddr) {
    let reply = shopper.check(addr).await;
    let request = reply.request_id().unwrap().to_owned();
    let names: Vec<&str> = (0..3).map(|index| world.name(index)).collect();
    until("three living peers hold the session", async || {
        for index in 0..3 {
            let trace = world.admin(index, Method::GET, &format!("/v1/requests/{request}")).await;
            let Some(key) =
                trace.json().ok().and_then(|it| Some(it["session"].as_str()?.to_owned()))
            else {
                continue;
            };
            let path = format!("/v1/sessions/{key}");
            let session = world.admin(index, Method::GET, &path).await.json().ok()?;
            let members = session["members"].as_array()?;
            let living = members.iter().filter(|it| names.contains(&it.as_str().unwrap_or("")));
            if session["owner"] == world.name(index) && living.count() == 3 {
                return Some(());
            }
        }
        None
    })
    .await;
}

/// Clients without end, each a new visitor now and then.
struct Load {
    done: Arc<AtomicBool>,
    answered: Arc<AtomicU32>,
    clients: tokio::task::JoinSet<Vec<String>>,
}

impl Load {
    fn begin(addr: SocketAddr, clients: usize) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU32::new(0));
        let mut set = tokio::task::JoinSet::new();
        for _ in 0..clients {
            let (done, answered) = (Arc::clone(&done), Arc::clone(&answered));
            set.spawn(async move {
                let mut failed = Vec::new();
                let mut client = Client::new();
                let mut turn = 0u32;
                while !done.load(Ordering::Relaxed) {
                    turn += 1;
                    if turn.is_multiple_of(8) {
                        client = Client::new();
                    }
                    let reply = if turn.is_multiple_of(2) {
                        client.get(addr, "/cart").await
                    } else {
                        client.post(addr, "/cart/add?item=book").await
                    };
                    match reply.and_then(Reply::ok) {
                        Ok(_) => {
                            answered.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(error) => failed.push(format!("{error:#}")),
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                failed
            });
        }
        Self { done, answered, clients: set }
    }

    /// Waits for so many more answers.
    async fn answers(&self, more: u32) {
        let wanted = self.answered.load(Ordering::Relaxed) + more;
        until("clients are answered", async || {
            (self.answered.load(Ordering::Relaxed) >= wanted).then_some(())
        })
        .await;
    }

    async fn end(self) -> (u32, Vec<String>) {
        self.done.store(true, Ordering::Relaxed);
        let failed = self.clients.join_all().await.concat();
        (self.answered.load(Ordering::Relaxed), failed)
    }
}

/// What the tests above found, as the documentation shows it.
async fn table() -> Tested {
    let mut rows = String::from("| | HAProxy | nginx | Apache httpd | Envoy |\n");
    rows.push_str("| --- | --- | --- | --- | --- |\n");
    let mut cells = Vec::new();
    for kind in ["haproxy", "nginx", "apache", "envoy"] {
        let found = |affinity: &str| results(kind, affinity).exists();
        cells.push(match (found("mesh"), found("own")) {
            (true, true) => "both",
            (true, false) => "the mesh's",
            (false, true) => "its own",
            (false, false) => return Err(Skipped(format!("{kind} was not tested"))),
        });
    }
    for promise in PROMISES {
        rows.push_str(&format!("| {promise} | {} |\n", cells.join(" | ")));
    }
    println!("{rows}");
    for kind in ["haproxy", "nginx", "apache", "envoy"] {
        println!("{}", fs::read_to_string(results(kind, "mesh")).unwrap_or_default());
    }
    let page = fs::read_to_string(workspace().join("docs/load-balancers.md")).unwrap();
    assert!(page.contains(&rows), "docs/load-balancers.md does not show this table");
    Ok(())
}
