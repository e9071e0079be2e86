//! Peers' metrics in a real Prometheus, asked for with every expression of the Grafana dashboard.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use http::Method;
use libtest_mimic::Trial;
use serde_json::Value as Json;
use tokio::io::AsyncWriteExt;
use warmhop_testbed::client::Client;
use warmhop_testbed::ports::Reservation;
use warmhop_testbed::workspace;

use crate::front_doors::Doors;
use crate::installed::{Tested, debian, home};
use crate::support::{QUICK, World, never_on, shop, until};
use crate::test;

/// The tests of this module.
pub(crate) fn trials() -> Vec<Trial> {
    vec![
        test("prometheus_reads_the_metrics_and_answers_the_dashboard", prometheus),
        test("promtool_finds_the_alert_rules_to_say_what_they_should", alerts),
    ]
}

/// The alert rules, in whose expressions a name that is misspelt would never be heard of.
fn alert_rules() -> String {
    fs::read_to_string(workspace().join("docs/alerts.yml")).unwrap()
}

/// Each metric of a peer that the alert rules ask for.
fn metrics_in(rules: &str) -> impl Iterator<Item = &str> {
    let words = rules.split(|c: char| !(c.is_ascii_lowercase() || c == '_'));
    words.filter(|word| word.starts_with("warmhop_"))
}

async fn alerts() -> Tested {
    let promtool = debian("usr/bin/promtool")?;
    let folder = home().join(format!("alerts-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("alerts.yml"), alert_rules()).unwrap();
    fs::write(folder.join("alerts.test.yml"), include_str!("alerts.test.yml")).unwrap();
    let said = tokio::process::Command::from(promtool)
        .args(["test", "rules", "alerts.test.yml"])
        .current_dir(&folder)
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    assert!(said.status.success(), "{said:?}");
    fs::remove_dir_all(&folder).unwrap();
    Ok(())
}

async fn prometheus() -> Tested {
    let checks = debian("usr/bin/promtool")?;
    let program = debian("usr/bin/prometheus")?;
    let logged = "[log]\naccess = 'stderr'\n";
    let world = World::with(2, vec![shop(QUICK, "")], logged, never_on(1)).await;
    world.warm(0).await;
    let mut client = Client::new();
    client.set_cookie("warmhop", "forged.peer-1");
    client.get(world.http(1), "/whoami").await.unwrap().ok().unwrap();
    Client::new().post(world.http(1), "/cart/add?item=a").await.unwrap().ok().unwrap();

    // Its names, units and help texts, by Prometheus's own rules, in the format that is sent to
    // a scraper that asks for no other.
    let text = world.admin(0, Method::GET, "/metrics").await.text();
    accepts(checks, &text).await;

    // Some are those of a front door with a certificate.
    let secure = Doors::open(true).await;
    let of_secure = secure.world.admin(0, Method::GET, "/metrics").await.text();
    let rules = alert_rules();
    for name in metrics_in(&rules) {
        let is_present =
            |line: &str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']));
        let mut lines = text.lines().chain(of_secure.lines());
        assert!(lines.any(is_present), "the alert rules ask for {name} in\n{text}");
    }
    drop(secure);

    let folder = home().join(format!("prometheus-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let targets: Vec<String> =
        (0..2).map(|index| format!("'{}'", world.mesh.peer(index).ports.admin)).collect();
    let config = format!(
        "global: {{ scrape_interval: 1s }}\nscrape_configs:\n- job_name: warmhop\n  \
         static_configs: [ {{ targets: [ {} ] }} ]\n",
        targets.join(", ")
    );
    fs::write(folder.join("prometheus.yml"), config).unwrap();
    let reserved = Reservation::new().unwrap();
    let addr = reserved.peer(0).http;
    let mut server = serve(program, &folder, addr);
    let ask = async |expr: &str| ask(addr, expr).await;
    // Rates need two samples; the app is asked again so that something has grown between them.
    until("both peers were read several times", async || {
        Client::new().get(world.http(1), "/whoami").await.ok()?;
        let counted = ask(
            "min(count_over_time(warmhop_build_info[1m])) >= 4 and count(warmhop_build_info) == 2",
        )
        .await?;
        (!counted["data"]["result"].as_array()?.is_empty()).then_some(())
    })
    .await;
    panels_show(addr).await;
    server.kill().await.unwrap();
    fs::remove_dir_all(&folder).unwrap();
    Ok(())
}

/// `promtool` finds nothing wrong with the metrics.
async fn accepts(checks: std::process::Command, text: &str) {
    let mut checks = tokio::process::Command::from(checks)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    checks.stdin.take().unwrap().write_all(text.as_bytes()).await.unwrap();
    let said = checks.wait_with_output().await.unwrap();
    assert!(said.status.success() && said.stderr.is_empty(), "{said:?}\n{text}");
}

fn serve(program: std::process::Command, folder: &Path, addr: SocketAddr) -> tokio::process::Child {
    let log = fs::File::create(folder.join("log")).unwrap();
    tokio::process::Command::from(program)
        .arg(format!("--config.file={}", folder.join("prometheus.yml").display()))
        .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
        .arg(format!("--web.listen-address={addr}"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// What Prometheus answers to a query, if it answers.
async fn ask(addr: SocketAddr, expr: &str) -> Option<Json> {
    let query: String = expr.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let path = format!("/api/v1/query?query={query}");
    let reply = Client::new().get(addr, path).await.ok()?;
    Some(reply.json().unwrap_or(Json::Null))
}

/// Every panel of the dashboard has something to show.
async fn panels_show(addr: SocketAddr) {
    let file = workspace().join("docs/grafana-dashboard.json");
    let board: Json = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    for panel in board["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expr = target["expr"].as_str().unwrap();
            let asked = expr
                .replace("$__rate_interval", "10s")
                .replace("$__range", "1m")
                .replace("$job", ".*")
                .replace("$instance", ".*")
                .replace("$app", ".*");
            let answer = ask(addr, &asked).await.expect("Prometheus answers");
            assert_eq!(answer["status"], "success", "{asked}: {answer}");
            let result = answer["data"]["result"].as_array().unwrap();
            assert!(!result.is_empty(), "{} shows nothing: {asked}", panel["title"]);
        }
    }
}
