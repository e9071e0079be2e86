//! What libraries keep in Redis beside the session: locks, limits, messages, queues. Each is asked at
//! three peers of which the first is killed in the middle, and at a real server, where it has to see
//! the same.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};

use libtest_mimic::Trial;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{ChildStdin, ChildStdout};
use warmhop_testbed::ports::Reservation;
use warmhop_testbed::workspace;

use crate::installed::{Skipped, Tested, debian, debian_file, home, libraries, node, python};
use crate::support::{QUICK, World, shop, until};
use crate::test;

/// What the docs say to an author of an app about the libraries: a line of the table for each.
const PAGE: &str = "docs/redis.md";

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        test("libraries_of_python_see_what_they_see_at_redis", || async {
            seen_alike(python("python")?, "libraries.py").await
        }),
        test("libraries_of_node_see_what_they_see_at_redis", || async {
            seen_alike(node("bullmq")?, "libraries.js").await
        }),
        test("libraries_of_php_see_what_they_see_at_redis", || async {
            seen_alike(php()?, "libraries.php").await
        }),
    ]
}

fn php() -> Result<Command, Skipped> {
    let shared = debian_file("usr/share/php")?;
    debian_file("usr/share/php/Illuminate/Cache")?;
    let modules = std::fs::read_dir(debian_file("usr/lib/php")?).ok().and_then(|mut folders| {
        folders.find_map(|folder| {
            let path = folder.ok()?.path();
            path.join("redis.so").exists().then_some(path)
        })
    });
    let modules = modules.ok_or_else(|| Skipped("there is no redis.so".into()))?;
    let programs = std::fs::read_dir(home().join("debian/usr/bin")).ok();
    let program = programs.and_then(|mut programs| {
        programs.find_map(|program| {
            let path = program.ok()?.path();
            let version = path.file_name()?.to_str()?.strip_prefix("php")?;
            version.starts_with(|c: char| c.is_ascii_digit()).then_some(path)
        })
    });
    let mut command = Command::new(program.ok_or_else(|| Skipped("there is no PHP".into()))?);
    command.arg("-n");
    for module in ["igbinary", "redis", "ctype", "posix", "tokenizer", "mbstring"] {
        let file = modules.join(format!("{module}.so"));
        command.arg("-d").arg(format!("extension={}", file.display()));
    }
    command.env("LD_LIBRARY_PATH", libraries()).env("PHP_SHARED", shared);
    Ok(command)
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A program that goes through the libraries: to the middle, and on once it gets a line of input.
struct Run {
    _program: tokio::process::Child,
    stdin: ChildStdin,
    says: Lines<BufReader<ChildStdout>>,
    steps: BTreeMap<String, Vec<String>>,
}

impl Run {
    fn begin(command: &Command, file: &str, ports: [u16; 3]) -> Self {
        let ports = ports.map(|port| port.to_string()).join(",");
        let mut program = tokio::process::Command::new(command.get_program());
        program.args(command.get_args());
        program.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        program.arg(workspace().join("testbed/tests/ecosystem/apps").join(file));
        program.env("REDIS_PORTS", ports).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut program = program.kill_on_drop(true).spawn().unwrap();
        let stdin = program.stdin.take().unwrap();
        let says = BufReader::new(program.stdout.take().unwrap()).lines();
        Self { _program: program, stdin, says, steps: BTreeMap::new() }
    }

    /// Notes what it says, up to this.
    async fn reaches(&mut self, end: &str) {
        loop {
            let line = self.says.next_line().await.unwrap();
            let line = line.unwrap_or_else(|| panic!("it ends before it says {end:?}"));
            if line == end {
                return;
            }
            if let Some((library, step)) = line.split_once(": ") {
                self.steps.entry(library.to_owned()).or_default().push(step.to_owned());
            }
        }
    }

    async fn goes_on(&mut self) {
        self.stdin.write_all(b"\n").await.unwrap();
    }
}

async fn seen_alike(command: Command, file: &str) -> Tested {
    let mut program = debian("usr/bin/redis-server")?;
    let mut world = World::new(3, shop(QUICK, "start = 'never'")).await;
    let reserved = Reservation::new().unwrap();
    let addr = reserved.peer(0).http;
    let port = addr.port().to_string();
    let arguments = ["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
    let _server = Server(program.args(arguments).stdout(Stdio::null()).spawn().unwrap());
    until("redis-server answers", async || tokio::net::TcpStream::connect(addr).await.ok()).await;

    let mut expected = Run::begin(&command, file, [addr.port(); 3]);
    expected.reaches("half").await;
    expected.goes_on().await;
    expected.reaches("end").await;

    let at = |index: usize| world.mesh.peer(index).ports.redis.port();
    let mut run = Run::begin(&command, file, [at(0), at(1), at(2)]);
    run.reaches("half").await;
    world.expect_errors();
    world.mesh.kill(0).unwrap();
    run.goes_on().await;
    run.reaches("end").await;

    let page = std::fs::read_to_string(workspace().join(PAGE)).unwrap();
    let mut wrong = Vec::new();
    for (library, expected) in &expected.steps {
        assert!(!expected.iter().any(|step| step.starts_with("failed")), "{library}: {expected:?}");
        let came = run.steps.get(library).cloned().unwrap_or_default();
        let works = came == *expected;
        let row = format!("| {library} | {}", if works { "works" } else { "does not" });
        println!("{row} |");
        if !page.lines().any(|line| line.starts_with(&row)) {
            wrong.push(format!("{row}: not in {PAGE}\n  redis: {expected:?}\n  here:  {came:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}
