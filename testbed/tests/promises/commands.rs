//! The testbed's own commands, on a folder and ports of their own.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value as Json;
use warmhop_testbed::ports::plan;
use warmhop_testbed::process::ProcessId;

use crate::support::{QUICK, program_built, until};

struct Bed {
    folder: std::path::PathBuf,
}

impl Bed {
    fn run(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_testbed"))
            .args(args)
            .env("TESTBED_DIR", &self.folder)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    fn peers(&self) -> Vec<Json> {
        let text = std::fs::read_to_string(self.folder.join("peers.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.run(&["down"]);
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }
}

fn process(peer: &Json) -> ProcessId {
    serde_json::from_value(peer.clone()).unwrap()
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[tokio::test]
async fn a_mesh_goes_up_loses_a_peer_gets_it_back_and_goes_down() {
    program_built("warmhop");
    program_built("bookshop");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("bed-{}", std::process::id()));
    let bed = Bed { folder };
    std::fs::create_dir_all(&bed.folder).unwrap();
    let apps = bed.folder.join("apps.toml");
    std::fs::write(
        &apps,
        format!("[[app]]\nname='shop'\nmatch={{path='/'}}\nrun=['bookshop']\nenv={{DOCS='{QUICK}'}}\nready={{path='/healthz'}}"),
    )
    .unwrap();
    // Where neither another mesh of these tests can be nor an outgoing connection: a peer's ports are free
    // for a moment while it is restarted. Another run of these tests begins to look elsewhere.
    let bases: Vec<u16> = (4..22).chain(122..=130).map(|n| n * 500).collect();
    let begin = std::process::id() as usize % bases.len();
    let is_free = |base: &&u16| {
        plan(3, Some(**base)).unwrap().iter().all(|ports| ports.check_free("").is_ok())
    };
    let base = *bases.iter().cycle().skip(begin).take(bases.len()).find(is_free).unwrap();
    let mistaken = bed.folder.join("mistaken.toml");
    std::fs::write(&mistaken, "[[app]]\nname='shop'\nrun=['bookshop']\nsession='postal'").unwrap();
    let mistaken = mistaken.to_str().unwrap();
    let output = bed.run(&["up", "3", "--app", mistaken, "--base-port", &base.to_string()]);
    assert_eq!(output.status.code(), Some(1));
    let printed = text(&output);
    assert!(
        printed.starts_with(&format!("testbed: {mistaken}:4:9: app.shop.session: ")),
        "{printed}"
    );
    assert_eq!(printed.lines().count(), 1, "{printed}");

    let apps = apps.to_str().unwrap();
    let up = ["up", "3", "--app", apps, "--base-port", &base.to_string()];
    let output = bed.run(&up);
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains(&format!("http://127.0.0.1:{}", base + 3)), "{}", text(&output));

    let peers = bed.peers();
    assert_eq!(peers.len(), 3);
    assert_eq!(peers[1]["name"], "peer-2");
    for (field, port) in [("http", 2), ("mesh", 202), ("admin", 302), ("redis", 402)] {
        assert_eq!(peers[1][field], format!("127.0.0.1:{}", base + port), "{field}");
    }
    assert!(peers.iter().all(|peer| process(peer).is_alive()), "they outlive their launcher");
    for file in ["peer-2/warmhop.toml", "peer-2/log", "peer-2/certs", "ca"] {
        assert!(bed.folder.join(file).exists(), "{file}");
    }

    let again = bed.run(&up);
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again).contains("up already"), "{}", text(&again));

    let killed = bed.run(&["kill", "peer-2"]);
    assert!(killed.status.success(), "{}", text(&killed));
    assert!(!process(&peers[1]).is_alive());
    let twice = bed.run(&["kill", "peer-2"]);
    assert_eq!(twice.status.code(), Some(1));
    assert_eq!(bed.run(&["kill", "peer-7"]).status.code(), Some(1));
    let started = bed.run(&["start", "peer-2"]);
    assert!(started.status.success(), "{}", text(&started));
    let now = bed.peers();
    assert_ne!(process(&now[1]), process(&peers[1]));
    assert!(process(&now[1]).is_alive());

    let stopped = bed.run(&["kill", "peer-3", "--signal", "STOP"]);
    assert!(stopped.status.success(), "{}", text(&stopped));
    until("it stops", async || process(&peers[2]).is_stopped().then_some(())).await;

    let down = bed.run(&["down"]);
    assert!(down.status.success(), "{}", text(&down));
    assert!(now.iter().all(|peer| !process(peer).is_alive()));
    assert!(!bed.folder.join("peers.json").exists());
    assert!(bed.run(&["down"]).status.success(), "there is nothing to stop, which is fine");

    let taken = std::net::TcpListener::bind(("127.0.0.1", base + 302)).unwrap();
    let output = bed.run(&up);
    assert_eq!(output.status.code(), Some(1));
    let addr = taken.local_addr().unwrap().to_string();
    assert!(text(&output).contains(&addr) && text(&output).contains("peer-2"), "{}", text(&output));
}

#[test]
fn wrong_usage_exits_with_2_and_says_how_it_is_meant() {
    for (args, part) in [
        (&["up", "0"][..], "1..=100"),
        (&["up", "101"], "1..=100"),
        (&["up", "many"], "invalid digit"),
        (&["up", "3", "--base-port", "80"], "1024..=65035"),
        (&["kill", "peer-1", "--signal", "BOGUS"], "there is no signal BOGUS"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_testbed")).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", text(&output));
        assert!(text(&output).contains(part), "{args:?}: {}", text(&output));
    }
}
