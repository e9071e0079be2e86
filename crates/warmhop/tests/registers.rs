//! Registers: values that a key names, on several peers of one mesh, over real QUIC.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod bed;

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use bed::{Bed, eventually, in_time, peer};
use tokio::sync::oneshot;
use warmhop::config::SessionPolicy;
use warmhop::ids::AppName;
use warmhop::{Change, Expires, Mesh, RegisterError, Registers, When};

const KEY: &[u8] = b"sess:ada";
/// A peer goes by its own clock as far as it is no further from the others'.
const CLOCKS_AGREE_WITHIN: Duration = Duration::from_millis(500);

fn name() -> AppName {
    AppName::new("redis").unwrap()
}

fn registers(mesh: &Mesh) -> Registers {
    mesh.registers(&name()).unwrap()
}

async fn mesh_of(names: &[&str]) -> Bed {
    mesh_with(names, SessionPolicy::default()).await
}

async fn mesh_with(names: &[&str], policy: SessionPolicy) -> Bed {
    let each: Vec<_> = names.iter().map(|name| (*name, policy.clone())).collect();
    mesh_of_each(&each).await
}

async fn mesh_of_each(each: &[(&str, SessionPolicy)]) -> Bed {
    let mut bed = Bed::new();
    for (one, policy) in each {
        let seeds = bed.peers.first().map(|first| first.mesh_addr().to_string());
        let identity = bed.authority.issue(&peer(one)).unwrap();
        let mut builder = Mesh::builder(identity).sessions(policy.clone()).registers(name());
        if let Some(seed) = seeds {
            builder = builder.seed(seed);
        }
        bed.peers.push(builder.start().await.unwrap());
    }
    bed.all_see_each_other().await;
    bed
}

async fn put(registers: &Registers, key: &[u8], bytes: &str) -> Change {
    registers.put(key, bytes, Expires::Default, When::Always).await.unwrap()
}

async fn text(registers: &Registers, key: &[u8]) -> Option<String> {
    let value = registers.get(key).await.unwrap()?;
    Some(String::from_utf8(value.bytes.to_vec()).unwrap())
}

async fn owner(bed: &Bed) -> usize {
    let owned = |mesh: &Mesh| mesh.status().sessions.owned == 1;
    eventually("one peer owns it", || bed.peers.iter().filter(|it| owned(it)).count() == 1).await;
    bed.peers.iter().position(owned).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_put_at_one_peer_is_read_and_changed_at_every_other() {
    let bed = mesh_of(&["a", "b", "c", "d"]).await;
    assert_eq!(text(&registers(&bed.peers[2]), KEY).await, None);
    assert!(put(&registers(&bed.peers[0]), KEY, "one").await.done);
    for mesh in &bed.peers {
        assert_eq!(text(&registers(mesh), KEY).await.as_deref(), Some("one"));
    }
    let changed = put(&registers(&bed.peers[3]), KEY, "two").await;
    assert_eq!(&changed.before.unwrap().bytes[..], b"one");
    for mesh in &bed.peers {
        assert_eq!(text(&registers(mesh), KEY).await.as_deref(), Some("two"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_nobody_set_leaves_nothing_behind() {
    let bed = mesh_of(&["a", "b", "c"]).await;
    let here = registers(&bed.peers[0]);
    for index in 0..50 {
        let key = format!("none:{index}");
        assert_eq!(here.get(key.as_bytes()).await.unwrap(), None);
        let none = Change::default();
        assert_eq!(here.delete(key.as_bytes(), When::Always).await.unwrap(), none);
        let late = here.expire(key.as_bytes(), Expires::Default, When::Always).await.unwrap();
        assert_eq!(late, none);
        let only = here.put(key.as_bytes(), "x", Expires::Default, When::Present).await.unwrap();
        assert_eq!(only, none);
    }
    eventually("no peer holds anything of them", || {
        bed.peers.iter().all(|mesh| mesh.metrics().contains("warmhop_sessions_held 0"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn conditions_are_judged_at_the_owner() {
    let bed = mesh_of(&["a", "b", "c"]).await;
    let (a, b) = (registers(&bed.peers[0]), registers(&bed.peers[1]));
    let first = a.put(KEY, "one", Expires::Default, When::Absent).await.unwrap();
    assert!(first.done);
    let second = b.put(KEY, "two", Expires::Default, When::Absent).await.unwrap();
    assert!(!second.done);
    assert_eq!(second.before.unwrap().version, first.version);
    let stale = When::Version(first.version - 1);
    assert!(!b.put(KEY, "two", Expires::Default, stale).await.unwrap().done);
    let next = b.put(KEY, "two", Expires::Default, When::Version(first.version)).await.unwrap();
    assert!(next.done && next.version > first.version);
    assert!(!a.delete(KEY, When::Version(first.version)).await.unwrap().done);
    assert!(a.delete(KEY, When::Version(next.version)).await.unwrap().done);
    assert_eq!(b.get(KEY).await.unwrap(), None);
    assert!(!b.put(KEY, "x", Expires::Default, When::Present).await.unwrap().done);
    let anew = b.put(KEY, "three", Expires::Default, When::Absent).await.unwrap();
    assert!(anew.done && anew.version > next.version);
}

#[tokio::test(flavor = "multi_thread")]
async fn counting_up_by_version_from_everywhere_at_once_loses_no_count() {
    let bed = mesh_of(&["a", "b", "c"]).await;
    put(&registers(&bed.peers[0]), KEY, "0").await;
    let mut counting = tokio::task::JoinSet::new();
    for mesh in bed.peers.iter().chain(&bed.peers) {
        let registers = registers(mesh);
        counting.spawn(async move {
            for _ in 0..10 {
                loop {
                    let value = registers.get(KEY).await.unwrap().unwrap();
                    let count: u32 = std::str::from_utf8(&value.bytes).unwrap().parse().unwrap();
                    let when = When::Version(value.version);
                    let next = (count + 1).to_string();
                    if registers.put(KEY, next, Expires::Keep, when).await.unwrap().done {
                        break;
                    }
                }
            }
        });
    }
    counting.join_all().await;
    assert_eq!(text(&registers(&bed.peers[1]), KEY).await.as_deref(), Some("60"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_survives_its_owner_and_is_found_by_those_who_remain() {
    let mut bed = mesh_of(&["a", "b", "c", "d"]).await;
    let mut expected = Vec::new();
    for index in 0..40 {
        let key = format!("key:{index}");
        put(&registers(&bed.peers[index % 4]), key.as_bytes(), &key).await;
        expected.push(key);
    }
    bed.peers.remove(1).vanish().await;
    for key in &expected {
        for mesh in &bed.peers {
            assert_eq!(text(&registers(mesh), key.as_bytes()).await.as_ref(), Some(key));
        }
        let again = put(&registers(&bed.peers[0]), key.as_bytes(), "again").await;
        assert_eq!(&again.before.unwrap().bytes[..], key.as_bytes());
    }
    // A key that is set for the first time needs nobody who is silent.
    assert!(put(&registers(&bed.peers[2]), b"new", "new").await.done);
    assert_eq!(text(&registers(&bed.peers[0]), b"new").await.as_deref(), Some("new"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_moves_to_where_it_is_used() {
    let bed = mesh_of(&["a", "b", "c"]).await;
    put(&registers(&bed.peers[0]), KEY, "0").await;
    let before = owner(&bed).await;
    let other = (before + 1) % 3;
    let registers = registers(&bed.peers[other]);
    let mut turn = 0;
    while bed.peers[other].status().sessions.owned == 0 {
        turn += 1;
        assert!(turn < 500, "it never moved");
        put(&registers, KEY, &turn.to_string()).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(owner(&bed).await, other);
    assert_eq!(text(&registers, KEY).await, Some(turn.to_string()));
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_that_set_a_key_for_the_first_time_at_once_agree_on_one_history() {
    let bed = mesh_of(&["a", "b", "c"]).await;
    for round in 0..20 {
        let key = format!("race:{round}");
        let mut racing = tokio::task::JoinSet::new();
        for (index, mesh) in bed.peers.iter().enumerate() {
            let (registers, key) = (registers(mesh), key.clone());
            racing.spawn(async move {
                let who = index.to_string();
                registers.put(key.as_bytes(), who, Expires::Default, When::Absent).await.unwrap()
            });
        }
        let won = racing.join_all().await.into_iter().filter(|change| change.done).count();
        assert_eq!(won, 1, "{key}");
        let read = text(&registers(&bed.peers[0]), key.as_bytes()).await;
        for mesh in &bed.peers {
            assert_eq!(text(&registers(mesh), key.as_bytes()).await, read);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_ends_at_its_time_wherever_it_is_read() {
    let bed = mesh_of(&["a", "b", "c"]).await;
    let (a, b) = (registers(&bed.peers[0]), registers(&bed.peers[1]));
    let long = Expires::After(Duration::from_secs(86_400 * 14));
    a.put(KEY, "x", long, When::Always).await.unwrap();
    let left = |value: &warmhop::Value| value.expires.duration_since(SystemTime::now()).unwrap();
    let value = b.get(KEY).await.unwrap().unwrap();
    assert!(left(&value) > Duration::from_secs(86_400 * 13), "{value:?}");
    // Keep keeps it; a change of the time alone leaves the value, and is a change all the same.
    b.put(KEY, "y", Expires::Keep, When::Present).await.unwrap();
    let value = a.get(KEY).await.unwrap().unwrap();
    assert!(left(&value) > Duration::from_secs(86_400 * 13), "{value:?}");
    let sooner = Expires::After(Duration::from_secs(3600));
    let changed = a.expire(KEY, sooner, When::Always).await.unwrap();
    assert!(changed.done && changed.version > value.version, "{changed:?}");
    let value = b.get(KEY).await.unwrap().unwrap();
    assert_eq!(&value.bytes[..], b"y");
    assert!(left(&value) <= Duration::from_secs(3600), "{value:?}");
    let exactly = SystemTime::UNIX_EPOCH + Duration::from_nanos(4_102_444_800_000_000_001);
    assert!(a.expire(KEY, Expires::At(exactly), When::Always).await.unwrap().done);
    let value = b.get(KEY).await.unwrap().unwrap();
    let later = value.expires.duration_since(exactly).expect("it does not end sooner");
    assert!(later < Duration::from_millis(1), "{later:?}");
    let soon = Expires::After(Duration::from_millis(300));
    assert!(a.expire(KEY, soon, When::Always).await.unwrap().done);
    let gone = SystemTime::now() + Duration::from_millis(300) + CLOCKS_AGREE_WITHIN;
    let mut seen = true;
    while seen {
        let asked = SystemTime::now();
        seen = b.get(KEY).await.unwrap().is_some();
        assert!(!seen || asked <= gone, "it was read after its end");
    }
    assert!(a.put(KEY, "z", Expires::Default, When::Absent).await.unwrap().done);
}

#[tokio::test(flavor = "multi_thread")]
async fn values_up_to_the_bound_travel_whole_and_larger_ones_are_refused() {
    let bed = mesh_of(&["a", "b", "c"]).await;
    let (a, b) = (registers(&bed.peers[0]), registers(&bed.peers[1]));
    let large = vec![7; warmhop::VALUE_BYTES_MAX];
    assert!(a.put(KEY, &large, Expires::Default, When::Always).await.unwrap().done);
    assert_eq!(b.get(KEY).await.unwrap().unwrap().bytes, large);
    let other = vec![8; warmhop::VALUE_BYTES_MAX];
    assert!(b.put(KEY, &other, Expires::Default, When::Present).await.unwrap().done);
    assert_eq!(a.get(KEY).await.unwrap().unwrap().bytes, other);
    let larger = vec![7; warmhop::VALUE_BYTES_MAX + 1];
    let refused = a.put(KEY, &larger, Expires::Default, When::Always).await;
    assert_eq!(refused, Err(RegisterError::TooLarge { bytes: larger.len() }));
    let key = vec![b'k'; warmhop::KEY_BYTES_MAX];
    assert!(a.put(&key, "x", Expires::Default, When::Always).await.unwrap().done);
    assert!(b.get(&key).await.unwrap().is_some());
    let key = vec![b'k'; warmhop::KEY_BYTES_MAX + 1];
    assert_eq!(a.get(&key).await, Err(RegisterError::KeyTooLong { bytes: key.len() }));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_key_is_listed_from_every_peer() {
    let bed = mesh_of(&["a", "b", "c", "d"]).await;
    let mut expected = BTreeSet::new();
    for index in 0..300 {
        let key = format!("key:{index}");
        put(&registers(&bed.peers[index % 4]), key.as_bytes(), "x").await;
        expected.insert(key);
    }
    let gone: Vec<String> = expected.iter().take(20).cloned().collect();
    for key in &gone {
        registers(&bed.peers[3]).delete(key.as_bytes(), When::Always).await.unwrap();
        expected.remove(key);
    }
    for mesh in &bed.peers {
        let registers = registers(mesh);
        let listed = BTreeSet::from_iter(listed(&registers, 1, async || ()).await);
        let missing: Vec<_> = expected.difference(&listed).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_whose_two_holders_are_lost_is_absent_and_free() {
    let mut bed = mesh_of(&["a", "b", "c"]).await;
    put(&registers(&bed.peers[0]), KEY, "x").await;
    let left = bed.peers.remove(0);
    for lost in bed.peers.drain(..) {
        lost.vanish().await;
    }
    // Their links ended with a goodbye, which proves that they are gone for good.
    assert_eq!(text(&registers(&left), KEY).await, None);
    bed.peers.push(left);
    for name in ["b", "c"] {
        let identity = bed.authority.issue(&peer(name)).unwrap();
        let seed = bed.peers[0].mesh_addr().to_string();
        let builder = Mesh::builder(identity).registers(self::name());
        bed.peers.push(builder.seed(seed).start().await.unwrap());
    }
    bed.all_see_each_other().await;
    // Those that live again have forgotten what they witnessed: for a while they are no witnesses.
    let reborn = registers(&bed.peers[1]);
    let found = in_time("it is a witness again", async {
        loop {
            match reborn.get(KEY).await {
                Err(RegisterError::Unavailable(_)) => {}
                found => break found,
            }
        }
    })
    .await;
    assert!(matches!(found, Ok(None)), "{found:?}");
    let reported =
        bed.peers.iter().any(|it| !it.metrics().contains("warmhop_sessions_lost_total 0"));
    assert!(reported, "a loss is counted");
    let begun = in_time("the key is free", async {
        loop {
            match reborn.put(KEY, "new", Expires::Default, When::Always).await {
                Err(RegisterError::Unavailable(_)) => {}
                begun => break begun,
            }
        }
    })
    .await;
    assert!(begun.unwrap().done);
    for mesh in &bed.peers {
        assert_eq!(text(&registers(mesh), KEY).await.as_deref(), Some("new"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_peers_the_one_that_is_left_goes_on() {
    let mut bed = mesh_of(&["a", "b"]).await;
    put(&registers(&bed.peers[0]), KEY, "one").await;
    bed.peers.remove(0).vanish().await;
    let left = registers(&bed.peers[0]);
    assert_eq!(text(&left, KEY).await.as_deref(), Some("one"));
    assert!(put(&left, KEY, "two").await.done);
    assert_eq!(text(&left, KEY).await.as_deref(), Some("two"));
    assert!(put(&left, b"other", "new").await.done);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_an_app_s_or_that_of_registers() {
    let bed = Bed::new();
    let identity = bed.authority.issue(&peer("a")).unwrap();
    let twice = Mesh::builder(identity).registers(name()).registers(name());
    let error = twice.start().await.expect_err("they collide").to_string();
    assert!(error.contains("redis"), "{error}");
}

/// All keys that `registers` lists, in calls of `count`; `between` is run after each call.
async fn listed(
    registers: &Registers,
    count: usize,
    mut between: impl AsyncFnMut(),
) -> Vec<String> {
    let (mut all, mut cursor) = (Vec::new(), 0);
    loop {
        let (keys, next) = registers.keys(cursor, count).await.unwrap();
        all.extend(keys.iter().map(|key| String::from_utf8(key.to_vec()).unwrap()));
        if next == 0 {
            return all;
        }
        assert!(next > cursor && next < 1 << 53, "{next} after {cursor}");
        cursor = next;
        between().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_key_is_listed_at_once_at_every_peer() {
    let bed = mesh_of(&["a", "b", "c"]).await;
    for turn in 0..100 {
        let key = format!("k:{turn}");
        assert!(put(&registers(&bed.peers[turn % 3]), key.as_bytes(), "x").await.done);
        let found = listed(&registers(&bed.peers[(turn + 1) % 3]), 1000, async || {}).await;
        assert!(found.contains(&key), "{key}");
        assert_eq!(found.len(), turn + 1, "{found:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_key_is_not_listed_though_former_members_still_hold_it() {
    let bed = mesh_of(&["a", "b", "c", "d", "e"]).await;
    let keys: Vec<String> = (0..60).map(|number| format!("key:{number}")).collect();
    // A peer that uses a key becomes a member, and another ceases to be one.
    for (turn, key) in keys.iter().enumerate() {
        for user in [turn, turn + 1, turn + 3] {
            for _ in 0..4 {
                put(&registers(&bed.peers[user % 5]), key.as_bytes(), "x").await;
            }
        }
    }
    let (gone, ended) = keys.split_at(30);
    for key in gone {
        assert!(registers(&bed.peers[0]).delete(key.as_bytes(), When::Always).await.unwrap().done);
    }
    for key in ended {
        // The mesh's clock may be a moment behind the machine's.
        let now = Expires::At(SystemTime::now() - Duration::from_millis(50));
        assert!(
            registers(&bed.peers[0]).expire(key.as_bytes(), now, When::Always).await.unwrap().done
        );
    }
    for mesh in &bed.peers {
        assert_eq!(listed(&registers(mesh), 1000, async || {}).await, [""; 0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_keys_make_no_listing_longer() {
    let bed = mesh_of(&["a"]).await;
    let here = registers(&bed.peers[0]);
    for number in 0..1000 {
        let key = format!("key:{number}");
        put(&here, key.as_bytes(), "x").await;
        if number != 500 {
            assert!(here.delete(key.as_bytes(), When::Always).await.unwrap().done);
        }
    }
    assert_eq!(here.keys(0, 1).await.unwrap(), (vec!["key:500".into()], 0));
}

/// A peer that can be stopped as a process is by SIGSTOP: it says no goodbye, and its socket stays.
async fn stoppable(bed: &Bed, name: &str) -> (Mesh, oneshot::Sender<()>) {
    let identity = bed.authority.issue(&peer(name)).unwrap();
    let seed = bed.peers[0].mesh_addr().to_string();
    let builder = Mesh::builder(identity).registers(self::name()).seed(seed);
    let (started, starting) = oneshot::channel();
    let (stop, stopped) = oneshot::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mesh = runtime.block_on(builder.start()).unwrap();
        assert!(started.send(mesh).is_ok());
        runtime.block_on(stopped).unwrap();
        std::mem::forget(runtime);
    });
    (starting.await.unwrap(), stop)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_key_is_listed_while_one_peer_is_silent_and_refused_while_two_are() {
    let mut bed = mesh_of(&["a", "b", "c"]).await;
    let mut stops = Vec::new();
    for name in ["d", "e"] {
        let (mesh, stop) = stoppable(&bed, name).await;
        bed.peers.push(mesh);
        stops.push(stop);
    }
    bed.all_see_each_other().await;
    let mut keys: Vec<String> = (0..100).map(|number| format!("key:{number}")).collect();
    for (turn, key) in keys.iter().enumerate() {
        put(&registers(&bed.peers[turn % 3]), key.as_bytes(), "x").await;
    }
    keys.sort_unstable();
    let mut stop_one = || stops.pop().unwrap().send(()).unwrap();
    stop_one();
    for mesh in &bed.peers[..3] {
        let mut found = listed(&registers(mesh), 1000, async || {}).await;
        found.sort_unstable();
        assert_eq!(found, keys);
    }
    stop_one();
    for mesh in &bed.peers[..3] {
        let refused = registers(mesh).keys(0, 1000).await;
        let Err(RegisterError::Unavailable(why)) = refused else { panic!("{refused:?}") };
        assert!(!why.contains(['(', '"']), "{why}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_key_is_listed_once_wherever_it_moves_meanwhile() {
    let bed = mesh_of(&["a", "b", "c", "d", "e"]).await;
    let here = registers(&bed.peers[0]);
    // Long ones, so that the bytes of a list count, too.
    let keys: Vec<String> = (0..600).map(|number| format!("{number:0>900}")).collect();
    for key in &keys {
        put(&here, key.as_bytes(), "x").await;
    }
    let mut user = 0;
    let mut all = listed(&here, 8192, async || {
        user = (user + 1) % bed.peers.len();
        let there = registers(&bed.peers[user]);
        for key in keys.iter().step_by(5) {
            for _ in 0..4 {
                put(&there, key.as_bytes(), "y").await;
            }
        }
    })
    .await;
    assert!(user > 0, "all of them came at once");
    all.sort_unstable();
    assert_eq!(all, keys);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_is_read_does_not_end_but_one_with_an_end_of_its_own_does() {
    let ttl = Duration::from_secs(10);
    let policy = SessionPolicy::default().with(|made| made.ttl = ttl);
    let bed = mesh_with(&["a", "b", "c"], policy).await;
    let here = registers(&bed.peers[0]);
    let first = put(&here, KEY, "used").await.version;
    let own = here.put(b"own", "", Expires::After(ttl), When::Always).await.unwrap();
    assert!(own.done);
    let ends = async |key: &[u8]| here.get(key).await.unwrap().map(|it| it.expires).unwrap();
    let (used, own) = (ends(KEY).await, ends(b"own").await);
    let there = registers(&bed.peers[1]);
    let moved = in_time("a read moves the end", async {
        loop {
            let value = there.get(KEY).await.unwrap().expect("it is read all the time");
            if value.expires > used {
                break value;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!((&moved.bytes[..], moved.version), (&b"used"[..], first));
    assert_eq!(ends(b"own").await, own);
}

/// A value of which only a few fit where memory is short.
const KIB_64: usize = 64 * 1024;

fn short_of_memory() -> SessionPolicy {
    SessionPolicy::default().with(|made| made.memory_bytes_max = 1 << 20)
}

#[tokio::test(flavor = "multi_thread")]
async fn where_memory_is_full_changes_are_refused_and_reads_and_deletions_go_on() {
    let bed = mesh_with(&["a", "b", "c"], short_of_memory()).await;
    let here = registers(&bed.peers[0]);
    let key = |at: usize| format!("sess:{at}");
    let mut kept = 0;
    let refused = loop {
        let value = vec![0; KIB_64];
        let put = here.put(key(kept).as_bytes(), value, Expires::Default, When::Always).await;
        match put {
            Ok(change) => assert!(change.done),
            Err(error) => break error,
        }
        kept += 1;
        assert!(kept < 16, "a mebibyte holds less than sixteen of them");
    };
    assert!(matches!(refused, RegisterError::Full(_)), "{refused}");
    let sessions = bed.peers[0].status().sessions;
    assert!(sessions.bytes >= (kept * KIB_64) as u64 && sessions.bytes <= sessions.bytes_max);
    for at in 0..kept {
        let value = here.get(key(at).as_bytes()).await.unwrap().unwrap();
        assert_eq!(value.bytes.len(), KIB_64, "nothing that was acknowledged is evicted");
    }
    for at in 0..2 {
        assert!(here.delete(key(at).as_bytes(), When::Always).await.unwrap().done);
    }
    let value = vec![0; KIB_64];
    put_in_time(&here, &key(0), &value, Expires::Default).await;
}

async fn put_64(registers: &Registers, key: &str) -> Result<Change, RegisterError> {
    registers.put(key.as_bytes(), vec![0; KIB_64], Expires::Default, When::Always).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_without_room_casts_no_vote_and_the_others_go_on() {
    let policy = SessionPolicy::default();
    let bed = mesh_of_each(&[("a", policy.clone()), ("b", policy), ("c", short_of_memory())]).await;
    let here = registers(&bed.peers[0]);
    for at in 0..20 {
        assert!(put_64(&here, &format!("sess:{at}")).await.unwrap().done);
    }
    let refused = || {
        let metrics = bed.peers[2].metrics();
        let name = "warmhop_session_copies_refused_total ";
        let count = metrics.lines().find_map(|line| line.strip_prefix(name)).unwrap().to_owned();
        count != "0"
    };
    eventually("the third says that it has no room", refused).await;
    let sessions = bed.peers[2].status().sessions;
    assert!(sessions.bytes <= sessions.bytes_max, "{sessions:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_only_its_owner_has_room_for_is_refused_and_its_key_is_free() {
    let policy = SessionPolicy::default();
    let mut small = short_of_memory();
    small.memory_bytes_max = (KIB_64 / 2) as u64;
    let bed = mesh_of_each(&[("a", policy), ("b", small.clone()), ("c", small)]).await;
    let here = registers(&bed.peers[0]);
    let put = put_64(&here, "sess:ada").await;
    assert!(matches!(put, Err(RegisterError::Full(_))), "{put:?}");
    assert!(here.get(b"sess:ada").await.unwrap().is_none(), "nothing was done");
    let small = here.put(b"sess:ada", vec![1; 64], Expires::Default, When::Absent).await;
    assert!(small.unwrap().done, "there is room for less");
    // From then on it is known that the others are full.
    let put = put_64(&here, "sess:eve").await;
    assert!(matches!(put, Err(RegisterError::Full(_))), "{put:?}");
    assert!(here.get(b"sess:eve").await.unwrap().is_none(), "nothing was done");
}

/// A mesh in which only a few hundred small values fit, and what is over is forgotten soon.
async fn small_mesh(bytes: u64) -> Bed {
    let policy = SessionPolicy::default().with(|made| {
        made.memory_bytes_max = bytes;
        made.forget_grace = Duration::from_secs(1);
    });
    mesh_with(&["a", "b", "c"], policy).await
}

/// Writes `value` under a new key once there is room for it.
async fn put_in_time(on: &Registers, key: &str, value: &[u8], expires: Expires) {
    in_time("there is room", async {
        loop {
            match on.put(key.as_bytes(), value.to_vec(), expires, When::Absent).await {
                Ok(change) => break assert!(change.done, "{key} is new"),
                Err(RegisterError::Full(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(error) => panic!("{key}: {error}"),
            }
        }
    })
    .await;
}

async fn nothing_is_kept(bed: &Bed) {
    let kept = || bed.peers.iter().map(|peer| peer.status().sessions.bytes).sum::<u64>();
    eventually("nothing is kept of what is over", || kept() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn values_whose_time_is_over_make_room_for_others() {
    let bed = small_mesh(256 << 10).await;
    let span = Expires::After(Duration::from_millis(20));
    // Four times of what there is room for.
    for at in 0..64 {
        let on = registers(&bed.peers[at % 3]);
        put_in_time(&on, &format!("limit:{at}"), &[0; 16 * 1024], span).await;
    }
    nothing_is_kept(&bed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_mesh_can_be_emptied_and_filled_again() {
    let bed = small_mesh(128 << 10).await;
    for round in 0..2 {
        let key = |at: usize| format!("sess:{round}:{at}");
        let mut kept = 0;
        let on = |at: usize| registers(&bed.peers[at % 3]);
        put_in_time(&on(0), &key(0), b"1", Expires::Default).await;
        loop {
            let at = kept + 1;
            let put = on(at).put(key(at).as_bytes(), "1", Expires::Default, When::Always).await;
            match put {
                Ok(change) => assert!(change.done),
                Err(RegisterError::Full(_)) => break,
                Err(error) => panic!("{error}"),
            }
            kept = at;
        }
        assert!(kept > 100, "{kept} fit");
        for at in 0..=kept {
            let gone = on(at).delete(key(at).as_bytes(), When::Always).await.unwrap();
            assert!(gone.done, "{} is deleted", key(at));
        }
        nothing_is_kept(&bed).await;
    }
}
