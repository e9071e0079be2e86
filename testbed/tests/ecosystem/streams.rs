//! Streams of real clients and servers: gRPC of the reference implementation, and files that curl
//! asks nginx for.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use libtest_mimic::Trial;
use toml::Table;

use crate::balancers;
use crate::installed::{Skipped, Tested, debian, debian_file, libraries, python};
use crate::support::{BOUND, World, never_on};
use crate::test;

/// The tests of this file.
pub(crate) fn trials() -> Vec<Trial> {
    vec![
        test("grpc_calls_of_every_kind_pass_a_hop", || grpc(None)),
        test("curl_moves_files_in_every_way_through_a_hop", || async { files().await }),
    ]
}

/// Two peers; the app runs at the first, which serves the clients of the second.
async fn hopping(folder: &Path, run: Vec<String>, more: &str) -> World {
    let mut app: Table = format!(
        "name = 'shop'\nmatch = {{ path = '/' }}\nstart = 'on-request'\n\
         ready = {{ timeout = '60s' }}\n{more}"
    )
    .parse()
    .unwrap();
    app.insert("dir".into(), folder.to_str().unwrap().into());
    app.insert("run".into(), run.into());
    let world = World::with(2, vec![app], "", never_on(1)).await;
    world.warm(0).await;
    world
}

/// A folder for one test.
fn fresh_folder(name: &str) -> PathBuf {
    let folder =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// A server with a handler for any method, so that no code has to be generated.
const SERVER: &str = r#"
import os, time
from concurrent import futures
import grpc

def unary(request, context):
    if request == b"die":
        os._exit(3)
    if request == b"fail":
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as asked")
    context.set_trailing_metadata((("x-last", "word"),))
    return b"echo:" + request

def down(request, context):
    for i in range(int(request)):
        yield b"%d" % i

def up(requests, context):
    return b"%d" % sum(len(r) for r in requests)

def both(requests, context):
    # Speaks first.
    yield b"welcome"
    for r in requests:
        if r == b"die":
            os._exit(3)
        yield b"echo:" + r

left = []

def endless(request, context):
    context.add_callback(lambda: left.append(1))
    while context.is_active():
        yield b"tick"
        time.sleep(0.01)

def count_left(request, context):
    return b"%d" % len(left)

class Any(grpc.GenericRpcHandler):
    def service(self, details):
        return {
            "/t.T/Unary": grpc.unary_unary_rpc_method_handler(unary),
            "/t.T/Down": grpc.unary_stream_rpc_method_handler(down),
            "/t.T/Up": grpc.stream_unary_rpc_method_handler(up),
            "/t.T/Both": grpc.stream_stream_rpc_method_handler(both),
            "/t.T/Endless": grpc.unary_stream_rpc_method_handler(endless),
            "/t.T/Left": grpc.unary_unary_rpc_method_handler(count_left),
        }.get(details.method)

server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
server.add_generic_rpc_handlers((Any(),))
server.add_insecure_port("127.0.0.1:" + os.environ["PORT"])
server.start()
server.wait_for_termination()
"#;

/// Asserts what a client sees; the end of it is the app's.
const CLIENT: &str = r#"
import queue, sys, time
import grpc

channel = grpc.insecure_channel(sys.argv[1])
T = 20
unary = channel.unary_unary("/t.T/Unary")
reply, call = unary.with_call(b"hi", timeout=T)
assert reply == b"echo:hi", reply
assert ("x-last", "word") in [(k, v) for k, v in call.trailing_metadata()], call.trailing_metadata()
fields = dict(call.initial_metadata())
behind = sys.argv[3:] == ["balancer"]
assert behind or "via" in fields, fields
assert fields["warmhop-peer"] == sys.argv[2], fields

big = b"x" * 3_000_000
assert unary(big, timeout=T) == b"echo:" + big

def status_of(call):
    try:
        call()
    except grpc.RpcError as error:
        return error.code(), error.details()
    raise AssertionError("no error")

assert status_of(lambda: unary(b"fail", timeout=T)) == (
    grpc.StatusCode.FAILED_PRECONDITION, "as asked")
missing = channel.unary_unary("/t.T/Missing")
assert status_of(lambda: missing(b"", timeout=T))[0] == grpc.StatusCode.UNIMPLEMENTED

down = list(channel.unary_stream("/t.T/Down")(b"500", timeout=T))
assert down == [b"%d" % i for i in range(500)], down
assert channel.stream_unary("/t.T/Up")(iter([b"abc"] * 500), timeout=T) == b"1500"

def talk():
    words = queue.Queue()
    call = channel.stream_stream("/t.T/Both")(iter(words.get, None), timeout=T)
    # The client has sent no message, and hears the server all the same.
    assert next(call) == b"welcome"
    for i in range(20):
        words.put(b"%d" % i)
        assert next(call) == b"echo:%d" % i
    return words, call

words, call = talk()
words.put(None)
assert list(call) == []
assert call.code() == grpc.StatusCode.OK

endless = channel.unary_stream("/t.T/Endless")(b"", timeout=T)
assert next(endless) == b"tick"
endless.cancel()
left = channel.unary_unary("/t.T/Left")
end = time.monotonic() + T
while left(b"", timeout=T) != b"1":
    assert time.monotonic() < end, "the server never heard that its client left"

words, call = talk()
words.put(b"die")
code = status_of(lambda: list(call))[0]
# Each balancer has its own word for it.
assert behind or code == grpc.StatusCode.UNAVAILABLE, code
words.put(None)
print("held")
"#;

/// Calls of every kind, by a hop or through a balancer.
pub(crate) async fn grpc(balancer: Option<&'static str>) -> Tested {
    let interpreter = python("python")?;
    let probe = python("python")?.args(["-c", "import grpc"]).stderr(Stdio::null()).status();
    if !probe.is_ok_and(|status| status.success()) {
        return Err(Skipped("grpcio is not installed; see python.log".into()));
    }
    let folder = fresh_folder("grpc");
    fs::write(folder.join("server.py"), SERVER).unwrap();
    fs::write(folder.join("client.py"), CLIENT).unwrap();
    let program = interpreter.get_program().to_str().unwrap().to_owned();
    let mut world = hopping(&folder, vec![program, "server.py".into()], "protocol = 'h2'").await;
    // The app dies because it is asked to.
    world.expect_errors();
    let balancer = match balancer {
        Some(kind) => Some(balancers::start(kind, "mesh", &world).await?),
        None => None,
    };
    let addr = balancer.as_ref().map_or_else(|| world.http(1), |balancer| balancer.addr);
    let mut client = tokio::process::Command::new(interpreter.get_program());
    client.arg(folder.join("client.py")).arg(addr.to_string()).arg(world.name(0));
    client.args(balancer.iter().map(|_| "balancer"));
    client.kill_on_drop(true);
    let output = tokio::time::timeout(BOUND * 4, client.output()).await.unwrap().unwrap();
    assert!(
        output.status.success() && output.stdout.starts_with(b"held"),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    fs::remove_dir_all(&folder).unwrap();
    Ok(())
}

/// Files that are read and written at `PORT`.
const NGINX: &str = r#"
daemon off;
master_process off;
pid FOLDER/pid;
events {}
http {
    access_log off;
    client_body_temp_path FOLDER/body;
    proxy_temp_path FOLDER/proxy;
    fastcgi_temp_path FOLDER/fastcgi;
    uwsgi_temp_path FOLDER/uwsgi;
    scgi_temp_path FOLDER/scgi;
    client_max_body_size 20m;
    server {
        listen 127.0.0.1:PORT;
        root FOLDER/files;
        dav_methods PUT DELETE;
    }
}
"#;

async fn files() -> Tested {
    let nginx = debian_file("usr/sbin/nginx")?;
    debian("usr/bin/curl")?;
    let folder = fresh_folder("files");
    let files = folder.join("files");
    fs::create_dir_all(&files).unwrap();
    let content: Vec<u8> = (0..8_000_000_u32).map(|i| (i % 253) as u8).collect();
    fs::write(files.join("movie"), &content).unwrap();
    fs::write(folder.join("template"), NGINX.replace("FOLDER", folder.to_str().unwrap())).unwrap();
    // An app learns its port when it starts.
    let script = format!(
        "sed \"s/PORT/$PORT/\" template > config && LD_LIBRARY_PATH='{}' exec '{}' -p . -e error.log -c config",
        libraries().to_string_lossy(),
        nginx.display()
    );
    let world = hopping(&folder, vec!["sh".into(), "-c".into(), script], "").await;
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        for index in 0..2 {
            let at = At { door: world.http(index), hops: index == 1, version, folder: &folder };
            at.downloads(&content).await;
            at.uploads(&content).await;
            // curl 7.88 drops an answer that comes before its body has gone and is followed by a reset
            // without an error, as RFC 9113 section 8.1 has it.
            if version == "--http1.1" {
                at.refuses_by_length().await;
            }
        }
    }
    drop(world);
    fs::remove_dir_all(&folder).unwrap();
    Ok(())
}

/// One of two doors, asked by curl over one version of HTTP.
struct At<'a> {
    door: SocketAddr,
    /// The app runs at the other peer.
    hops: bool,
    version: &'a str,
    folder: &'a Path,
}

impl At<'_> {
    fn out(&self) -> PathBuf {
        self.folder.join("out")
    }

    async fn curl(&self, path: &str, args: &[&str]) -> Output {
        let mut curl = tokio::process::Command::from(debian("usr/bin/curl").unwrap());
        curl.args(["--silent", "--show-error", "--fail", "--dump-header", "-", self.version, "-o"])
            .arg(self.out())
            .args(args)
            .arg(format!("http://{}/{path}", self.door))
            .current_dir(self.folder)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        tokio::time::timeout(BOUND, curl.output()).await.expect("curl ends").unwrap()
    }

    /// The heads of an answer that came as it should.
    fn heads(&self, output: &Output) -> String {
        let text = String::from_utf8_lossy(&output.stdout).to_lowercase();
        assert!(output.status.success(), "{}: {output:?}", self.version);
        assert_eq!(text.contains("\nvia: "), self.hops, "{}: {text}", self.version);
        text
    }

    async fn downloads(&self, content: &[u8]) {
        let (version, out) = (self.version, self.out());
        let whole = self.heads(&self.curl("movie", &[]).await);
        assert!(whole.contains("accept-ranges: bytes"), "{whole}");
        assert!(fs::read(&out).unwrap() == content, "{version}: the whole file");

        let part = self.heads(&self.curl("movie", &["--range", "1000-1999"]).await);
        assert!(part.contains(" 206"), "{part}");
        assert!(part.contains("content-range: bytes 1000-1999/8000000"), "{part}");
        assert_eq!(fs::read(&out).unwrap(), content[1000..2000]);
        let two = self.heads(&self.curl("movie", &["--range", "0-9,-10"]).await);
        assert!(two.contains("multipart/byteranges"), "{two}");
        let beyond = self.curl("movie", &["--range", "9000000-"]).await;
        assert!(beyond.stdout.windows(5).any(|at| at == b" 416 "), "{beyond:?}");

        // A download that broke off goes on where it was.
        fs::write(&out, &content[..5_000_000]).unwrap();
        self.heads(&self.curl("movie", &["--continue-at", "-"]).await);
        assert!(fs::read(&out).unwrap() == content, "{version}: resumed");
    }

    async fn uploads(&self, content: &[u8]) {
        let (version, files) = (self.version, self.folder.join("files"));
        // By length, which makes curl ask first; and in chunks, whose end is not known before.
        for (name, args) in [("length", &[][..]), ("chunks", &["-H", "Transfer-Encoding: chunked"])]
        {
            if name == "chunks" && version != "--http1.1" {
                continue;
            }
            let mut args = args.to_vec();
            args.extend([
                "--expect100-timeout",
                "20",
                "-H",
                "Expect: 100-continue",
                "-T",
                "files/movie",
            ]);
            let stored = self.heads(&self.curl(name, &args).await);
            assert!(stored.contains(" 201"), "{stored}");
            if version == "--http1.1" {
                assert!(stored.starts_with("http/1.1 100"), "got 100 Continue: {stored}");
            }
            assert!(fs::read(files.join(name)).unwrap() == content, "{version}: {name}");
            self.heads(&self.curl(name, &["-X", "DELETE"]).await);
        }
    }

    async fn refuses_by_length(&self) {
        let version = self.version;
        // Refused by its length before a byte of it is sent.
        fs::write(self.folder.join("too-large"), vec![0; 21_000_000]).unwrap();
        let refused = self
            .curl(
                "refused",
                &["--expect100-timeout", "20", "-H", "Expect: 100-continue", "-T", "too-large"],
            )
            .await;
        let text = String::from_utf8_lossy(&refused.stdout).into_owned();
        assert!(text.contains(" 413") && !text.contains(" 100"), "{version}: {refused:?}");
    }
}
