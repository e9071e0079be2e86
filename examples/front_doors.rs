//! The ways in that a service can give its clients: HTTP/1.1 and HTTP/2 at one port, both over TLS
//! at another, and an HTTP server of its own.
//!
//! ```sh
//! cargo run -p warmhop-examples --example front_doors
//! curl --http1.1 http://localhost:PORT/
//! curl --http2-prior-knowledge http://localhost:PORT/
//! curl --cacert FILE https://localhost:PORT/
//! ```
#![allow(clippy::print_stdout, missing_docs, reason = "an example talks to its reader")]

use std::net::SocketAddr;

use axum::Router;
use axum::extract::{ConnectInfo, Request};
use axum::http::HeaderMap;
use axum::routing::get;
use tokio::net::TcpListener;
use tower::ServiceBuilder;
use warmhop::identity::{Authority, FrontDoorTls};
use warmhop::ids::{AppName, PeerId};
use warmhop::{AppSpec, ClientInfo, Mesh, app_fn};

/// The app learns who asks, and how, from the fields that every proxy uses.
async fn greet(headers: HeaderMap) -> String {
    let field = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("?");
    format!("hello {}, by {}\n", field("x-forwarded-for"), field("x-forwarded-proto"))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Yours comes from an authority that your clients trust: `FrontDoorTls::from_files` reads it
    // again whenever it is renewed.
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let cert_file = std::env::temp_dir().join(format!("front-doors-{}.pem", std::process::id()));
    std::fs::write(&cert_file, made.cert.pem())?;
    let key = made.signing_key.serialize_pem();
    let tls = FrontDoorTls::from_pem(made.cert.pem().as_bytes(), key.as_bytes())?;

    let one = PeerId::new("one")?;
    let identity = Authority::generate("example")?.issue(&one)?;
    let app = app_fn(|| async { Ok::<_, std::io::Error>(Router::new().route("/", get(greet))) });
    let mesh = Mesh::builder(identity)
        .front_door(TcpListener::bind("127.0.0.1:0").await?)
        .front_door_tls(TcpListener::bind("127.0.0.1:0").await?, tls)
        .app(AppSpec::new(AppName::new("greeting")?), app)
        .start()
        .await?;

    // A server of one's own, here axum's: it says who its clients are.
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let own = listener.local_addr()?;
    let service = ServiceBuilder::new()
        .map_request(|mut request: Request| {
            if let Some(ConnectInfo(addr)) = request.extensions().get::<ConnectInfo<SocketAddr>>() {
                let client = ClientInfo::new(*addr);
                request.extensions_mut().insert(client);
            }
            request
        })
        .service(mesh.service());
    let router = Router::new().fallback_service(service);
    let server = axum::serve(listener, router.into_make_service_with_connect_info::<SocketAddr>());

    let [plain, secure] = [0, 1].map(|at| mesh.front_doors()[at].port());
    println!("HTTP/1.1 and HTTP/2    http://localhost:{plain}/");
    println!(
        "the same over TLS      https://localhost:{secure}/   trusting {}",
        cert_file.display()
    );
    println!("a server of one's own  http://localhost:{}/", own.port());

    server
        .with_graceful_shutdown(async {
            let _ = tokio::signal::ctrl_c().await;
        })
        .await?;
    mesh.shutdown().await;
    std::fs::remove_file(cert_file)?;
    Ok(())
}
