//! The commands, asked of a service that embeds the mesh.

use serde_json::Value;
use tokio::net::TcpListener;
use tower::ServiceExt;
use warmhop::admin::{Admin, Token};
use warmhop::identity::Authority;
use warmhop::ids::{AppName, PeerId};
use warmhop::{AppSpec, Body, Mesh, app_fn};

use crate::cli::warmhop;

/// A service with one app, and where its operators ask.
async fn service(token: Option<&str>) -> (Mesh, String) {
    let peer = PeerId::new("one").unwrap();
    let identity = Authority::generate("embedded").unwrap().issue(&peer).unwrap();
    let app = app_fn(async || {
        let hello = async || "hello";
        Ok::<_, std::io::Error>(axum::Router::new().route("/", axum::routing::get(hello)))
    });
    let spec = AppSpec::new(AppName::new("greeting").unwrap());
    let door = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mesh = Mesh::builder(identity).front_door(door).app(spec, app).start().await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let admin = Admin::new(&mesh).token(Token::new(token));
    tokio::spawn(admin.serve(listener, std::future::pending()));
    (mesh, url)
}

/// What a command ends with and puts out.
fn asked(url: &str, token: Option<&str>, args: &[&str]) -> (Option<i32>, String) {
    let mut command = warmhop(args);
    command.env("WARMHOP_ADMIN", url);
    if let Some(token) = token {
        command.env("WARMHOP_ADMIN_TOKEN", token);
    }
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_command_works_with_a_service_that_embeds_the_mesh() {
    let (mesh, url) = service(None).await;
    let request = http::Request::get("/").header("host", "localhost");
    let request = request.header("x-request-id", "a-request").body(Body::empty()).unwrap();
    // One whose answer is held is under way, and would keep the peer from being drained.
    let status = mesh.service().oneshot(request).await.unwrap().status();
    assert_eq!(status, 200);

    let done = |args: &[&str]| {
        let (code, text) = asked(&url, None, args);
        assert_eq!(code, Some(0), "{args:?}: {text}");
        text
    };
    let status: Value = serde_json::from_str(&done(&["status", "--json"])).unwrap();
    assert_eq!(
        (&status["peer"]["name"], &status["apps"][0]["state"]),
        (&"one".into(), &"ready".into())
    );
    for (args, expected) in [
        (&["status"][..], "greeting"),
        (&["members"], "one"),
        (&["why", "a-request"], "greeting"),
        (&["app", "restart", "greeting"], "greeting"),
        (&["app", "pause", "greeting"], "greeting"),
        (&["app", "resume", "greeting"], "greeting"),
        (&["app", "start", "greeting"], "greeting"),
        (&["drain", "--wait", "--timeout", "60s"], "drained"),
        (&["undrain"], ""),
        (&["lb", "haproxy"], "cookie"),
    ] {
        let text = done(args);
        assert!(text.contains(expected), "{args:?}: {text}");
    }
    assert!(mesh.takes_traffic());
    // A log is the service's own affair.
    let (code, text) = asked(&url, None, &["logs", "greeting"]);
    assert!(code == Some(1) && text.contains("there is nothing here"), "{text}");
    mesh.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_has_its_operators_show_a_token() {
    let (mesh, url) = service(Some("a-token-of-some-length")).await;
    let (code, text) = asked(&url, None, &["status"]);
    assert!(code == Some(1) && text.contains("WARMHOP_ADMIN_TOKEN"), "{text}");
    let (code, text) = asked(&url, Some("a-token-of-some-length"), &["status"]);
    assert!(code == Some(0) && text.contains("greeting"), "{text}");
    mesh.shutdown().await;
}
