//! A peer that embeds the mesh and answers from memory: what a request costs where no app is behind a
//! socket. `testbed/bench` measures it.
//!
//! ```text
//! memory CERTS HTTP MESH SEED (ready|never) (current-thread|work-stealing)
//! ```

use std::convert::Infallible;
use std::net::SocketAddr;

use http::{Request, Response};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use warmhop::config::{SessionMode, StartMode};
use warmhop::identity::Identity;
use warmhop::ids::AppName;
use warmhop::{AppSpec, Body, Mesh, app_fn};

/// As long as what the other contenders answer.
const ANSWER: &str = match std::str::from_utf8(&[b'x'; 1024]) {
    Ok(text) => text,
    Err(_) => "",
};

type Error = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Error> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [certs, http, mesh, seed, starts, runtime] = &words[..] else {
        return Err("it takes CERTS HTTP MESH SEED ready|never current-thread|work-stealing".into());
    };
    let start = match starts.as_str() {
        "ready" => StartMode::AtBoot,
        "never" => StartMode::Never,
        other => return Err(format!("it starts `ready` or `never`, not `{other}`").into()),
    };
    let runtime = self::runtime(runtime)?;
    runtime.block_on(serve(certs, (http.parse()?, mesh.parse()?), seed, start))
}

fn runtime(kind: &str) -> Result<Runtime, Error> {
    let mut builder = match kind {
        "current-thread" => Builder::new_current_thread(),
        // Two workers, also where they share one core: that is what a peer of a service has.
        "work-stealing" => {
            let mut builder = Builder::new_multi_thread();
            builder.worker_threads(2);
            builder
        }
        other => return Err(format!("there is no runtime `{other}`").into()),
    };
    Ok(builder.enable_all().build()?)
}

async fn serve(
    certs: &str,
    (http, mesh): (SocketAddr, SocketAddr),
    seed: &str,
    start: StartMode,
) -> Result<(), Error> {
    let mut spec = AppSpec::new(AppName::new("memory")?);
    spec.policy.session = SessionMode::None;
    spec.policy.start = start;
    let app = app_fn(|| async {
        let service = tower::service_fn(async |_: Request<Body>| {
            Ok::<_, Infallible>(Response::new(Body::from(ANSWER)))
        });
        Ok::<_, Infallible>(service)
    });
    let peer = Mesh::builder(Identity::from_dir(certs)?)
        .front_door(TcpListener::bind(http).await?)
        .mesh_listen(mesh)
        .advertise(mesh)
        .seed(seed)
        .app(spec, app)
        .start()
        .await?;
    tokio::signal::ctrl_c().await?;
    peer.shutdown().await;
    Ok(())
}
