//! The operator's commands at a peer whose admin listener is reached by HTTPS, through something in
//! front of it that ends TLS.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::cli::{Peer, app_table, certified, config, run, text, warmhop, write};
use crate::documented::{blocks, root};
use crate::redis_seen::metric;
use crate::role::{scratch, wait_until};

const TOKEN: &str = "of-sixteen-or-more-characters";

/// What ends TLS in front of an admin listener.
struct Door {
    port: u16,
    /// Its certificate, in PEM.
    trusted: PathBuf,
    _runtime: tokio::runtime::Runtime,
}

/// A certificate for `localhost` that ends in this year, and its key.
fn certificate(year: i32) -> (rcgen::Certificate, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(year, 1, 1);
    (params.self_signed(&key).unwrap(), key)
}

impl Door {
    /// With a certificate for `localhost` that ends in this year.
    fn open(test: &str, year: i32, to: String) -> Self {
        let (certificate, key) = certificate(year);
        let trusted = scratch(test).join("door.pem");
        std::fs::write(&trusted, certificate.pem()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        runtime.spawn(async move {
            let acceptor = TlsAcceptor::from(Arc::new(server));
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, to) = (acceptor.clone(), to.clone());
                tokio::spawn(async move {
                    let Ok(mut client) = acceptor.accept(stream).await else { return };
                    let Ok(mut peer) = TcpStream::connect(to).await else { return };
                    let _ = copy_bidirectional(&mut client, &mut peer).await;
                });
            }
        });
        Self { port, trusted, _runtime: runtime }
    }

    /// What a command says that asks here by this name.
    fn ask(&self, name: &str, args: &[&str]) -> (i32, String) {
        let mut command = warmhop(args);
        command
            .env("WARMHOP_ADMIN", format!("https://{name}:{}", self.port))
            .env("WARMHOP_ADMIN_TOKEN", TOKEN);
        let output = command.output().unwrap();
        let printed = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8(printed).unwrap())
    }
}

fn admin(peer: &Peer) -> String {
    peer.admin.trim_start_matches("http://").to_owned()
}

#[test]
fn commands_ask_a_peer_by_https_and_check_who_answers() {
    let dir = certified("https", "peer-1");
    let guarded = "listen = '127.0.0.1:0'\ntoken = 'of-sixteen-or-more-characters'\n";
    let file = config(&app_table("start = 'at-boot'\n"))
        .replace("[admin]\nlisten = '127.0.0.1:0'\n", &format!("[admin]\n{guarded}"));
    let peer = Peer::start(&write(&dir, &file));
    let door = Door::open("https-door", 4096, admin(&peer));
    let trusted = ["--ca-file", text(&door.trusted)];
    let at = format!("localhost:{}", door.port);
    let ask = |args: &[&str]| door.ask("localhost", &[args, &trusted].concat());

    wait_until("the app is ready, as the status over HTTPS says", || {
        let (code, printed) = ask(&["status"]);
        assert_eq!(code, 0, "{printed}");
        printed.contains("ready")
    });
    let (code, printed) = ask(&["logs", "shop"]);
    assert!(code == 0 && printed.contains("ready"), "{printed}");
    let (code, printed) = ask(&["app", "stop", "shop"]);
    assert_eq!(code, 0, "{printed}");

    // As deploy.md prints it, but for where the peer is.
    let content = std::fs::read_to_string(root().join("docs/deploy.md")).unwrap();
    let printed = blocks(&content, "sh").into_iter().find(|it| it.contains("ADMIN=https://"));
    let printed = printed.expect("a block of commands").replace("peer-1.example:9443", &at);
    std::fs::write(dir.join("admin-token"), TOKEN).unwrap();
    std::fs::copy(&door.trusted, dir.join("proxies-ca.pem")).unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-ec", &format!("warmhop() {{ \"$WARMHOP_BINARY\" \"$@\"; }}; {printed}")]);
    shell.env("WARMHOP_BINARY", env!("CARGO_BIN_EXE_warmhop")).current_dir(&dir);
    // What this system trusts, for the command that names no file.
    let output = shell.env("SSL_CERT_FILE", &door.trusted).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && printed.contains("peer-1"), "{output:?}");

    // Who is not trusted gets no token.
    let (code, printed) = door.ask("localhost", &["status"]);
    assert_eq!(code, 1, "{printed}");
    assert!(printed.contains("no TLS connection to https://localhost:"), "{printed}");
    assert!(printed.contains("--ca-file FILE or WARMHOP_ADMIN_CA_FILE"), "{printed}");

    let (code, printed) = door.ask("127.0.0.1", &[&["status"], &trusted[..]].concat());
    assert!(code == 1 && printed.contains("certificate is for another name"), "{printed}");

    let absent = dir.join("absent.pem");
    let (code, printed) = door.ask("localhost", &["status", "--ca-file", text(&absent)]);
    assert!(code == 1 && printed.contains("absent.pem") && printed.contains("in PEM"), "{printed}");
}

#[test]
fn commands_say_what_is_wrong_with_an_https_listener() {
    let peer = Peer::start(&write(&certified("not-https", "peer-1"), &config("")));
    let old = Door::open("old-door", 2001, admin(&peer));
    let trusted = ["status", "--ca-file", text(&old.trusted)];
    let (code, printed) = old.ask("localhost", &trusted);
    assert!(
        code == 1 && printed.contains("its certificate has expired; renew it there"),
        "{printed}"
    );

    let plain = peer.admin.replace("http://", "https://");
    let (code, printed) = {
        let output = warmhop(&trusted).env("WARMHOP_ADMIN", plain).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    assert!(code == 1 && printed.contains("it does not speak TLS"), "{printed}");
    assert!(printed.contains("asked by http://"), "{printed}");
}

#[test]
fn a_front_doors_expired_certificate_is_reported_by_every_command_that_checks_it() {
    let dir = certified("old-front-door", "peer-1");
    let (certificate, key) = certificate(2001);
    std::fs::write(dir.join("cert.pem"), certificate.pem()).unwrap();
    std::fs::write(dir.join("key.pem"), key.serialize_pem()).unwrap();
    let tls = "[http]\ntls = { cert = 'cert.pem', key = 'key.pem' }\n";
    let file = write(&dir, &config("").replace("[http]\n", tls));
    let (code, _, warned) = run(&["check", text(&file)]);
    let expected = "http.tls: the certificate expired on 2001-01-01";
    assert!(code == 0 && warned.contains(expected), "{warned}");

    let peer = Peer::start(&file);
    let logged = peer
        .ever_logged("a certificate has expired: clients refuse it; renew it where it was issued");
    assert!(
        logged.contains("ERROR") && logged.contains("the front door's certificate"),
        "{logged}"
    );
    let (code, shown, error) = peer.run(&["status"]);
    assert_eq!(code, 0, "{error}");
    assert!(
        shown.contains("\nthe front door's certificate expired on 2001-01-01: renew"),
        "{shown}"
    );
    let ends = metric(&peer, "warmhop_front_door_not_after_seconds");
    // 2001-01-01T00:00:00Z
    assert_eq!(ends.parse(), Ok(978_307_200.0), "{ends}");
}
