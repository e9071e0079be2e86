//! What is promised when a peer ends at exactly the wrong moment. Only debug builds have the
//! failpoints that this takes.

use std::path::Path;
use std::time::Duration;

use warmhop_testbed::chaos::faults::{Kind, Point};
use warmhop_testbed::chaos::judge::judge;
use warmhop_testbed::chaos::run::{Options, Stage};

use crate::support::{QUICK, World, program_built, shop, until};

#[tokio::test]
async fn a_peer_that_ends_at_any_moment_of_the_protocol_loses_and_doubles_nothing() {
    program_built("warmhop");
    let name = format!("failpoints-{}", std::process::id());
    let options = Options {
        // With a fourth peer, a member that leaves is replaced before it has left.
        peers: 4,
        length: Duration::ZERO,
        kinds: vec![Kind::Failpoint],
        clients: 6,
        idle: 6,
        seed: 1,
        folder: Path::new(env!("CARGO_TARGET_TMPDIR")).join(name),
    };
    let mut stage = Stage::open(&options).await.unwrap_or_else(|error| panic!("{error:#}"));
    for (turn, point) in Point::ALL.into_iter().enumerate() {
        match stage.breaker.failpoint(turn % usize::from(options.peers), point, 1).await {
            Ok(tripped) => assert!(tripped, "{} was not reached", point.name),
            Err(error) => panic!("{}: {error:#}", point.name),
        }
    }
    let history = stage.close(Ok(())).await.unwrap();
    let verdict = judge(&history);
    assert!(verdict.holds(), "{verdict}\nunder {}", options.folder.display());
    assert!(verdict.acknowledged > 50, "there was something to lose: {verdict}");
    assert_eq!(verdict.failpoints.values().map(|(_, tripped)| tripped).sum::<u64>(), 8);
    std::fs::remove_dir_all(&options.folder).unwrap();
}

#[tokio::test]
async fn a_failpoint_that_is_none_is_refused_at_the_start_and_the_known_ones_are_named() {
    let mut world = World::prepare(1, vec![shop(QUICK, "")], "");
    world.expect_errors();
    world.mesh.start_with(0, &[("WARMHOP_FAILPOINTS", "seal.before=kill@1")]).unwrap();
    let status = until("it ends", async || world.mesh.ended(0).unwrap()).await;
    assert!(!status.success());
    let log = world.mesh.peer(0).log();
    assert!(log.contains("`seal.before=kill@1`"), "{log}");
    for point in Point::ALL {
        assert!(log.contains(point.name), "{} is named: {log}", point.name);
    }
}
