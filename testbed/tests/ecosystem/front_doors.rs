//! A front door as the clients that people use find it: curl, httpx, Node.js and Chromium, over
//! HTTP/1.1 and HTTP/2, with TLS and without, at a peer where the app is ready and at one from
//! which every request hops.

use std::path::{Path, PathBuf};
use std::process::Command;

use libtest_mimic::Trial;
use toml::Table;

use crate::browser::browser_script;
use crate::installed::{Tested, debian, node, python};
use crate::support::{ENDLESS, QUICK, World, shop};
use crate::test;

/// The tests of this module.
pub(crate) fn trials() -> Vec<Trial> {
    vec![
        test("curl_speaks_every_protocol_of_a_front_door", curl),
        test("httpx_speaks_both_protocols_of_a_front_door", httpx),
        test("nodes_http2_client_sends_many_requests_over_one_connection", node_http2),
        test("a_browser_speaks_http_2_to_a_front_door_with_tls", browser),
    ]
}

/// Two peers, the app ready on the first and never on the second.
pub(crate) struct Doors {
    pub(crate) world: World,
    /// What clients trust, where the doors have TLS.
    pub(crate) cert: PathBuf,
}

impl Doors {
    pub(crate) async fn open(with_tls: bool) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("front-doors-{}-{with_tls}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let [cert, key] = ["cert.pem", "key.pem"].map(|name| folder.join(name));
        std::fs::write(&cert, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        let tls: Table =
            format!("tls = {{ cert = '{}', key = '{}' }}", cert.display(), key.display())
                .parse()
                .unwrap();
        let world = World::with(2, vec![shop(QUICK, "")], "", |index, config| {
            if with_tls {
                config["http"].as_table_mut().unwrap().extend(tls.clone());
            }
            if index == 1 {
                let apps = config["app"].as_array_mut().unwrap();
                let env = apps[0]["env"].as_table_mut().unwrap();
                env.insert("DOCS".into(), ENDLESS.to_string().into());
            }
        })
        .await;
        world.warm(0).await;
        Self { world, cert }
    }

    fn url(&self, index: usize, scheme: &str) -> String {
        format!("{scheme}://{}/", self.world.http(index))
    }
}

impl Drop for Doors {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(self.cert.parent().unwrap());
    }
}

/// Runs a client; what it put out, a line each.
fn said(command: &mut Command) -> Vec<String> {
    let output = tokio::task::block_in_place(|| command.output()).expect("it starts");
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().lines().map(ToOwned::to_owned).collect()
}

async fn curl() -> Tested {
    debian("usr/bin/curl")?;
    for with_tls in [false, true] {
        let doors = Doors::open(with_tls).await;
        let by_protocol: &[(&[&str], &str)] = if with_tls {
            &[(&["--http1.1"], "1.1"), (&["--http2"], "2"), (&["--no-alpn"], "1.1")]
        } else {
            // `--http2` asks by `Upgrade: h2c`, which RFC 9113 did away with: it stays with 1.1.
            &[(&["--http1.1"], "1.1"), (&["--http2-prior-knowledge"], "2"), (&["--http2"], "1.1")]
        };
        for index in [0, 1] {
            let url = doors.url(index, if with_tls { "https" } else { "http" });
            for (options, version) in by_protocol {
                let mut curl = debian("usr/bin/curl")?;
                curl.args(["--silent", "--show-error", "--max-time", "20", "--cacert"])
                    .arg(&doors.cert)
                    .args(["--write-out", "%{http_code} %{http_version} %header{warmhop-peer}\\n"])
                    .args(*options);
                // curl 7.88 fails to go on over a connection that it opened with prior knowledge,
                // the peer that serves it; any other it uses twice.
                let times = if options.contains(&"--http2-prior-knowledge") { 1 } else { 2 };
                for _ in 0..times {
                    curl.args(["--output", "/dev/null", &url]);
                }
                let expected = format!("200 {version} {}", doors.world.name(0));
                assert_eq!(said(&mut curl), vec![expected; times], "{url} {options:?}");
            }
        }
    }
    Ok(())
}

async fn httpx() -> Tested {
    python("python")?;
    let doors = Doors::open(true).await;
    let script = "
import httpx, ssl, sys
trust = ssl.create_default_context(cafile=sys.argv[2])
for http2 in (False, True):
    with httpx.Client(http1=not http2, http2=http2, verify=trust, trust_env=False) as client:
        for _ in range(2):
            got = client.get(sys.argv[1], timeout=20)
            print(got.status_code, got.http_version, got.headers['warmhop-peer'])
";
    for index in [0, 1] {
        let url = doors.url(index, "https");
        let mut httpx = python("python")?;
        httpx.args(["-c", script, &url]).arg(&doors.cert);
        let expected = ["HTTP/1.1", "HTTP/1.1", "HTTP/2", "HTTP/2"]
            .map(|version| format!("200 {version} {}", doors.world.name(0)));
        assert_eq!(said(&mut httpx), expected, "{url}");
    }
    Ok(())
}

async fn node_http2() -> Tested {
    // Node.js itself is all it needs.
    node("playwright-core")?;
    let script = "
        const http2 = require('node:http2');
        const [url, file] = process.argv.slice(1);
        const client = http2.connect(url, { ca: require('node:fs').readFileSync(file) });
        const ask = () => new Promise((done, failed) => {
            const request = client.request({ ':path': '/' });
            let head;
            request.on('response', (fields) => { head = fields; });
            request.on('error', failed);
            request.resume();
            request.on('end', () => done(head[':status'] + ' ' + head['warmhop-peer']));
        });
        (async () => {
            const answers = await Promise.all(Array.from({ length: 300 }, ask));
            console.log(client.alpnProtocol ?? 'h2c', new Set(answers).size, answers[0]);
            client.close();
        })();
    ";
    for (with_tls, scheme, protocol) in [(false, "http", "h2c"), (true, "https", "h2")] {
        let doors = Doors::open(with_tls).await;
        for index in [0, 1] {
            let url = doors.url(index, scheme);
            let mut node = node("playwright-core")?;
            node.args(["-e", script, &url]).arg(&doors.cert);
            let expected = format!("{protocol} 1 200 {}", doors.world.name(0));
            assert_eq!(said(&mut node), [expected], "{url}");
        }
    }
    Ok(())
}

async fn browser() -> Tested {
    browser_script()?;
    let doors = Doors::open(true).await;
    let script = "
        const { chromium } = require('playwright-core');
        (async () => {
            const browser = await chromium.launch({
                executablePath: process.env.CHROMIUM,
                args: process.env.CHROMIUM_ARGS.split(' '),
            });
            const context = await browser.newContext({ ignoreHTTPSErrors: true });
            const page = await context.newPage();
            for (let visit = 0; visit < 2; visit++) {
                const response = await page.goto(process.argv[1]);
                const protocol = await page.evaluate(
                    () => performance.getEntriesByType('navigation')[0].nextHopProtocol);
                console.log(response.status(), protocol, await response.headerValue('warmhop-peer'));
            }
            // A WebSocket goes over the HTTP/2 connection that is there (RFC 8441): then its
            // handshake is answered with 200 instead of 101.
            const devtools = await context.newCDPSession(page);
            const shaken = new Promise((resolve) => {
                devtools.on('Network.webSocketHandshakeResponseReceived',
                    (event) => resolve(event.response.status));
            });
            await devtools.send('Network.enable');
            const echoed = await page.evaluate(() => new Promise((resolve, reject) => {
                const socket = new WebSocket(new URL('/ws', location.href.replace('http', 'ws')));
                socket.onopen = () => socket.send('over a stream');
                socket.onmessage = (event) => { socket.close(); resolve(event.data); };
                socket.onerror = () => reject(new Error('the WebSocket failed'));
            }));
            console.log(echoed, await shaken);
            const cookies = await context.cookies();
            console.log(cookies.map(({ name, secure }) => name + (secure ? ' secure' : '')).join());
            await browser.close();
        })();
    ";
    for index in [0, 1] {
        let url = doors.url(index, "https");
        let expected = format!("200 h2 {}", doors.world.name(0));
        let lines = said(browser_script()?.args(["-e", script, &url]));
        assert_eq!(lines[..2], [expected.clone(), expected], "{url}");
        assert_eq!(lines[2], "over a stream 200");
        assert!(lines[3].contains("warmhop secure"), "{lines:?}");
    }
    Ok(())
}
