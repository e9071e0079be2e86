//! A new version that is rolled out peer by peer behind a balancer, under load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use libtest_mimic::Trial;
use warmhop_testbed::client::Reply;

use crate::installed::Tested;
use crate::own_ids::in_turn;
use crate::support::{APP, QUICK, Shopper, World, shop, until};
use crate::{balancers, test};

pub(crate) fn trials() -> Vec<Trial> {
    vec![test("a_version_rolled_out_behind_haproxy_fails_nobody_and_is_not_taken_back", rolled_out)]
}

/// How many clients fill their carts.
const CLIENTS: usize = 8;

/// The edition that the shop says it is.
fn edition(reply: &Reply) -> u64 {
    reply.header("bookshop-edition").map_or(0, |edition| edition.parse().unwrap())
}

async fn rolled_out() -> Tested {
    let app = shop(QUICK, &format!("version = '9'\nenv = {{ DOCS = '{QUICK}', EDITION = '9' }}"));
    let world = World::new(3, app).await;
    for index in 0..3 {
        world.warm(index).await;
    }
    let balancer = balancers::launch("haproxy", |listen| in_turn(&world, listen))?;
    balancers::serves(balancer.addr).await;
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (door, stop, done) = (balancer.addr, Arc::clone(&stop), Arc::clone(&done));
            tokio::spawn(async move {
                let (mut shopper, mut newest) = (Shopper::default(), 0);
                while !stop.load(Ordering::SeqCst) {
                    // Nothing is missing in the cart, or it fails.
                    let edition = edition(&shopper.add(door).await);
                    assert!(edition >= newest, "edition {edition} after {newest}");
                    newest = edition;
                    done.fetch_add(1, Ordering::SeqCst);
                }
                newest
            })
        })
        .collect();
    let goes_on = async || {
        let wanted = done.load(Ordering::SeqCst) + 10 * CLIENTS as u64;
        until("the clients go on", async || {
            assert!(clients.iter().all(|client| !client.is_finished()), "one has failed");
            (done.load(Ordering::SeqCst) >= wanted).then_some(())
        })
        .await;
    };
    goes_on().await;
    for index in 0..3 {
        let change = |config: &mut toml::Table| {
            let app = config["app"].as_array_mut().unwrap()[0].as_table_mut().unwrap();
            app.insert("version".into(), "10".into());
            app["env"].as_table_mut().unwrap().insert("EDITION".into(), "10".into());
        };
        world.mesh.reconfigure(index, change).unwrap();
        let reloaded = world.warmhop(index, &["reload"]);
        assert!(reloaded.status.success(), "{reloaded:?}");
        until("the new version serves", async || {
            (world.app(index, APP).await["version"] == "10").then_some(())
        })
        .await;
        goes_on().await;
    }
    stop.store(true, Ordering::SeqCst);
    let asked = done.load(Ordering::SeqCst);
    for client in clients {
        assert_eq!(client.await.unwrap(), 10, "of {asked} requests");
    }
    println!("{asked} requests, none failed, no cart had a gap, no session went back");
    Ok(())
}
