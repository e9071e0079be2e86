//! What keeps a peer from starting, and what is said of it.

use std::net::{TcpListener, UdpSocket};
use std::path::Path;

use crate::cli::{certified, config, outcome, run, text, warmhop, write};
use crate::role::scratch;

#[test]
fn a_failed_start_is_one_message_with_the_configurations_key() {
    let dir = certified("start", "peer-1");
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (taken, taken_udp) = (tcp.local_addr().unwrap(), udp.local_addr().unwrap());
    let base = config("");
    let any = "listen = '127.0.0.1:0'";
    let shop = |run: &str| config(&format!("[[app]]\nname = 'shop'\nrun = ['{run}']\n"));
    for (what, changed, status, parts) in [
        (
            "http port",
            base.replace("['127.0.0.1:0']", &format!("['{taken}']")),
            1,
            vec![
                "5:11: http.listen[0]: cannot listen on",
                "Address already in use",
                "choose a free port",
            ],
        ),
        (
            "admin port",
            base.replace(&format!("[admin]\n{any}"), &format!("[admin]\nlisten = '{taken}'")),
            1,
            vec!["10:10: admin.listen: cannot listen on", "Address already in use"],
        ),
        (
            "mesh port",
            base.replace(&format!("[mesh]\n{any}"), &format!("[mesh]\nlisten = '{taken_udp}'")),
            1,
            vec!["7:10: mesh.listen: cannot listen on", "Address already in use"],
        ),
        (
            "not our address",
            base.replace("['127.0.0.1:0']", "['192.0.2.1:8081']"),
            1,
            vec![
                "http.listen[0]: cannot listen on 192.0.2.1:8081",
                "name an address of this machine",
            ],
        ),
        (
            "no identity",
            base.replace("'certs'", "'nothing'"),
            2,
            vec!["8:12: mesh.identity: cannot read", "warmhop cert peer"],
        ),
        (
            "another's identity",
            base.replace("'peer-1'", "'peer-2'"),
            2,
            vec!["8:12: mesh.identity: the certificate names", "peer-1", "peer-2"],
        ),
        (
            "no program",
            shop("no-such-program"),
            2,
            vec!["13:7: app.shop.run: there is no program \"no-such-program\" in PATH"],
        ),
        ("no file", shop("./server"), 2, vec!["app.shop.run: there is no executable file"]),
        (
            "no folder",
            shop("sh") + "dir = 'nowhere'\n",
            2,
            vec!["14:7: app.shop.dir: there is no folder", "make it, or correct dir"],
        ),
        (
            "no front-door certificate",
            base.replace("[mesh]", "tls = { cert = 'c.pem', key = 'k.pem' }\n[mesh]"),
            2,
            vec!["6:7: http.tls: ", "c.pem"],
        ),
    ] {
        refuses(&dir, what, &changed, status, &parts);
    }
}

/// `run` ends with `status`, after one message that has `parts` in it.
fn refuses(dir: &Path, what: &str, config: &str, status: i32, parts: &[&str]) {
    let file = write(dir, config);
    let (code, _, error) = run(&["run", "--config", text(&file)]);
    assert_eq!(code, status, "{what}: {error}");
    assert_eq!(error.lines().count(), 1, "{what}: {error}");
    for part in parts {
        assert!(error.contains(part), "{what}: {part:?} in {error}");
    }
    assert!(!error.contains("panicked") && !error.contains("stack"), "{what}: {error}");
}

#[test]
fn a_log_filter_that_means_nothing_keeps_a_peer_from_starting() {
    let dir = certified("filter", "peer-1");
    let file = write(&dir, &config(""));
    let output = warmhop(&["run", "--config", text(&file)]).env("RUST_LOG", "a=b=c").output();
    let (code, _, error) = outcome(&output.unwrap());
    assert_eq!(code, 2);
    assert!(error.contains("RUST_LOG"), "{error}");
}

#[test]
fn check_refuses_what_run_refuses_in_the_same_words() {
    let (dir, other) = (certified("refuse", "peer-1"), certified("refuse-other", "peer-1"));
    let own = |name: &str| std::fs::read(dir.join("certs").join(name)).unwrap();
    let others = |name: &str| std::fs::read(other.join("certs").join(name)).unwrap();
    let with_tls = |cert: &str, key: &str| {
        let tls = format!("tls = {{ cert = 'certs/{cert}', key = '{key}' }}\n[mesh]");
        config("").replace("[mesh]", &tls)
    };
    let other_key = text(&other.join("certs/key.pem")).to_owned();
    let (ca, key) = (own("ca.pem"), own("key.pem"));
    for (what, text_of, ca, key, part) in [
        ("peer", config("").replace("peer-1", "peer-2"), &ca, &key, "the certificate names"),
        ("cluster", config("").replace("'demo'", "'shops'"), &ca, &key, "the certificate names"),
        ("key", config(""), &ca, &others("key.pem"), "is not the private key"),
        ("garbage", config(""), &ca, &b"key".to_vec(), "holds no PRIVATE KEY"),
        ("authority", config(""), &others("ca.pem"), &key, "was not issued by"),
        ("pair", with_tls("cert.pem", &other_key), &ca, &key, "http.tls: cannot use"),
        (
            "a key as certificate",
            with_tls("key.pem", &other_key),
            &ca,
            &key,
            "holds no certificate",
        ),
    ] {
        std::fs::write(dir.join("certs/ca.pem"), ca).unwrap();
        std::fs::write(dir.join("certs/key.pem"), key).unwrap();
        let file = write(&dir, &text_of);
        let (code, out, error) = run(&["check", text(&file)]);
        assert_eq!((code, out.as_str()), (2, ""), "{what}: {error}");
        assert!(error.contains(part), "{what}: {error}");
        let (code, _, refused) = run(&["run", "--config", text(&file)]);
        assert_eq!((code, refused), (2, error), "{what}");
    }
}

#[test]
fn everything_that_is_missing_is_reported_at_once() {
    let dir = scratch("missing");
    let tls = "tls = { cert = 'c.pem', key = 'k.pem' }\n[mesh]";
    let more = "[[app]]\nname = 'shop'\nrun = ['no-such-program']\n";
    let file = write(&dir, &config(more).replace("[mesh]", tls));
    let (code, _, error) = run(&["run", "--config", text(&file)]);
    assert_eq!((code, error.lines().count()), (2, 3), "{error}");
    for key in ["http.tls", "mesh.identity", "app.shop.run"] {
        assert!(error.contains(&format!(": {key}: ")), "{key}: {error}");
    }
    let (code, _, error) = run(&["check", text(&file)]);
    assert_eq!(code, 0, "another machine may have it: {error}");
}
