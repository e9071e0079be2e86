//! Streams of real clients and servers: gRPC of the reference implementation, end to end.

use std::fs;
use std::process::Stdio;

use libtest_mimic::Trial;
use toml::Table;

use crate::installed::{Tested, python};
use crate::support::{BOUND, World};
use crate::test;

/// The tests of this file.
pub(crate) fn trials() -> Vec<Trial> {
    vec![test("grpc_calls_of_every_kind_pass_a_hop", || async { grpc().await })]
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
assert "via" in fields, fields
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
assert code == grpc.StatusCode.UNAVAILABLE, code
words.put(None)
print("held")
"#;

async fn grpc() -> Tested {
    let interpreter = python("python")?;
    let probe = python("python")?.args(["-c", "import grpc"]).stderr(Stdio::null()).status();
    if !probe.is_ok_and(|status| status.success()) {
        return Err(crate::installed::Skipped("grpcio is not installed; see python.log".into()));
    }
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("grpc-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("server.py"), SERVER).unwrap();
    fs::write(folder.join("client.py"), CLIENT).unwrap();
    let program = interpreter.get_program().to_str().unwrap().to_owned();
    let mut app: Table = "name = 'shop'\nmatch = { path = '/' }\nprotocol = 'h2'\n\
                          start = 'on-request'\nready = { timeout = '60s' }\n"
        .parse()
        .unwrap();
    app.insert("dir".into(), folder.to_str().unwrap().into());
    app.insert("run".into(), toml::Value::Array(vec![program.into(), "server.py".into()]));
    let mut world = World::with(2, vec![app], "", |index, config| {
        if index == 1 {
            config["app"].as_array_mut().unwrap()[0]["start"] = "never".into();
        }
    })
    .await;
    // The app dies because it is asked to.
    world.expect_errors();
    world.warm(0).await;
    let mut client = tokio::process::Command::new(interpreter.get_program());
    client.arg(folder.join("client.py")).arg(world.http(1).to_string()).arg(world.name(0));
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
