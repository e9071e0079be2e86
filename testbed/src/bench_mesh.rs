//! The mesh that streams and messages are measured on: one peer runs an app, the others send requests
//! on to it.

use std::time::Duration;

use anyhow::Result;
use toml::{Table, Value};

use crate::mesh::{Mesh, Spec, until};
use crate::ports::Reservation;

/// How long the mesh may take to form, and the app to start.
pub(crate) const BOUND: Duration = Duration::from_secs(60);

/// `peers` peers, of which the first runs the app, ready.
///
/// # Errors
/// If the mesh does not form, or the app does not start.
pub(crate) async fn bench_mesh(reserved: &Reservation, peers: u16) -> Result<Mesh> {
    let folder = crate::workspace().join("target/testbed-bench");
    std::fs::create_dir_all(&folder)?;
    let mut app: Table = "name = 'shop'\nmatch = { path = '/' }\nready = { path = '/healthz' }\n\
         session = 'none'\nenv = { DOCS = '300' }\n"
        .parse()?;
    let program = crate::program("bookshop")?.to_string_lossy().into_owned();
    app.insert("run".into(), vec![Value::from(program)].into());
    let mut mesh = Mesh::prepare(Spec {
        folder,
        cluster: "bench".into(),
        ports: (0..peers).map(|index| reserved.peer(index)).collect(),
        apps: vec![app],
        settings: Table::new(),
        detached: false,
    })?;
    for index in 0..peers {
        let start = if index == 0 { "at-boot" } else { "never" };
        mesh.reconfigure(usize::from(index), |config| {
            let apps = config["app"].as_array_mut().into_iter().flatten();
            for app in apps.filter_map(Value::as_table_mut) {
                app.insert("start".into(), start.into());
            }
        })?;
        mesh.start(usize::from(index))?;
    }
    mesh.formed().await?;
    until("the app is ready", BOUND, async || {
        (mesh.peer(0).app_state("shop").await == "ready").then_some(())
    })
    .await?;
    Ok(mesh)
}
