//! What an app is kept from that its peer may.

use std::os::unix::fs::PermissionsExt;

use nix::unistd::Uid;
use warmhop_cli::child::ChildApp;
use warmhop_cli::config::Inherit;
use warmhop_cli::host::confine::Wanted;

use crate::role::{name, sh, wait_until};

/// What the app's last words are.
async fn words(app: ChildApp) -> Vec<String> {
    app.launch(&name()).await.err().expect("it ends at once").output
}

#[tokio::test]
async fn an_app_of_a_user_of_its_own_reads_neither_keys_nor_its_peer() {
    if !Uid::effective().is_root() {
        eprintln!("skipped: only root starts processes of other users");
        return;
    }
    let secret = std::env::temp_dir().join(format!("warmhop-secret-{}", std::process::id()));
    std::fs::write(&secret, "secret").unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    let script = format!(
        "id -u; id -G; cat {secret} 2>/dev/null || echo denied; \
         cat /proc/{peer}/environ >/dev/null 2>&1 || echo denied; \
         grep NoNewPrivs /proc/self/status; echo $HOME; ulimit -n; ulimit -Hn; exit 3",
        secret = secret.display(),
        peer = std::process::id()
    );
    let wanted = Wanted { user: Some("nobody".into()), files: Some(100), ..Wanted::default() };
    let confine = wanted.here(None).unwrap();
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    let output = words(ChildApp { confine, ..sh(&script) }).await;
    std::fs::remove_file(&secret).unwrap();
    let (user, group) = (nobody.uid.to_string(), nobody.gid.to_string());
    let home = nobody.dir.display().to_string();
    let expected = [&user, &group, "denied", "denied", "NoNewPrivs:\t1", &home, "100", "100"];
    assert_eq!(output, expected);
}

#[tokio::test]
async fn two_apps_of_two_users_read_nothing_of_each_other() {
    if !Uid::effective().is_root() {
        eprintln!("skipped: only root starts processes of other users");
        return;
    }
    let of = |user: &str| Wanted { user: Some(user.into()), ..Wanted::default() }.here(None);
    // Where every user may go.
    let dir = std::env::temp_dir().join(format!("warmhop-two-users-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o777)).unwrap();
    // It never becomes ready, and lives until its start is given up.
    let mut first = sh("umask 077; echo mine > secret; echo $$ > pid; exec sleep 600");
    first.env.insert("SECRET".into(), "not yours".into());
    (first.confine, first.dir) = (of("nobody").unwrap(), dir.clone());
    let starting = tokio::spawn(async move { first.launch(&name()).await.map(drop) });
    let pid = || std::fs::read_to_string(dir.join("pid")).ok().filter(|pid| pid.ends_with('\n'));
    let reads = |user: &str, pid: String| {
        let script = format!(
            "cat secret 2>/dev/null || echo denied; \
             cat /proc/{pid}/environ 2>/dev/null | tr '\\0' '\\n' | grep SECRET || echo denied; \
             ls -l /proc/{pid}/fd >/dev/null 2>&1 || echo denied; \
             kill -0 {pid} 2>/dev/null || echo denied; exit 3"
        );
        ChildApp { confine: of(user).unwrap(), dir: dir.clone(), ..sh(&script) }
    };
    tokio::task::spawn_blocking({
        let pid = dir.join("pid");
        move || wait_until("the first one runs", || std::fs::metadata(&pid).is_ok())
    })
    .await
    .unwrap();
    let pid = loop {
        match pid() {
            Some(pid) => break pid.trim().to_owned(),
            None => tokio::task::yield_now().await,
        }
    };
    assert_eq!(words(reads("daemon", pid.clone())).await, ["denied"; 4]);
    // Its own user may: what is asked would be answered if it were allowed.
    assert_eq!(words(reads("nobody", pid)).await, ["mine", "SECRET=not yours"]);
    starting.abort();
    std::fs::remove_dir_all(&dir).unwrap();
}

#[tokio::test]
async fn an_app_inherits_what_the_configuration_took_from_the_environment_only_by_name() {
    // Cargo sets it for the programs that it starts.
    let mut app = sh("echo ${CARGO_PKG_NAME:-none} ${PATH:+path}; exit 3");
    app.hidden = vec!["CARGO_PKG_NAME".into(), "PATH".into()];
    assert_eq!(words(app.clone()).await, ["none path"]);
    app.inherit = Inherit::Only(vec!["CARGO_PKG_NAME".into()]);
    assert_eq!(words(app.clone()).await, [concat!(env!("CARGO_PKG_NAME"), " path")]);
    app.inherit = Inherit::All;
    app.env.insert("CARGO_PKG_NAME".into(), "its-own".into());
    assert_eq!(words(app).await, ["its-own path"]);
}

#[tokio::test]
async fn an_app_whose_control_group_cannot_be_made_does_not_start_and_says_what_to_do() {
    let wanted = Wanted { memory: Some(64 << 20), cgroup: true, ..Wanted::default() };
    // Nobody has divided the control group of this test.
    let confine = wanted.here(None).unwrap();
    let output = words(ChildApp { confine, ..sh("echo started; exit 3") }).await.concat();
    assert!(output.contains("control group") && !output.contains("started"), "{output}");
}

#[tokio::test]
async fn an_app_stays_within_its_limits_or_does_not_start() {
    // A user of its own beside a limit of memory needs what containers do not leave to root.
    let user = Uid::effective().is_root().then(|| "nobody".to_owned());
    let limits = Wanted { user, memory: Some(64 << 20), cpu: Some(1), ..Wanted::default() };
    let confine = limits.here(None).unwrap();
    let output = words(ChildApp { confine, ..sh("ulimit -d; nproc; exit 3") }).await;
    assert_eq!(output, ["65536", "1"]);

    let missing = Wanted { memory: Some(64 << 20), ..Wanted::default() }.here(None).unwrap();
    let run = vec!["/nowhere/at/all".into()];
    let output = words(ChildApp { confine: missing, run, ..sh("") }).await;
    assert!(output.concat().contains("cannot run /nowhere/at/all"), "{output:?}");
}
