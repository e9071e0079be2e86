//! Session libraries, unmodified, on the endpoint that speaks Redis; and Redis's own tools.

use std::path::PathBuf;
use std::process::{Command, Output};

use http::StatusCode;
use libtest_mimic::Trial;
use toml::Table;
use warmhop_testbed::client::Client;
use warmhop_testbed::workspace;

use crate::installed::{Skipped, Tested, debian, debian_file, home, libraries, node, python, ruby};
use crate::support::{World, until};
use crate::test;

/// The tests of this module.
pub(crate) fn trials() -> Vec<Trial> {
    vec![
        test("express_sessions_live_in_the_mesh", || async { lives(express()?).await }),
        test("flask_sessions_live_in_the_mesh", || async { lives(flask()?).await }),
        test("django_sessions_live_in_the_mesh", || async { lives(django()?).await }),
        test("starlette_sessions_live_in_the_mesh", || async { lives(starlette()?).await }),
        test("php_sessions_live_in_the_mesh", || async { lives(php()?).await }),
        test("rails_sessions_live_in_the_mesh", || async { lives(rails()?).await }),
        test("django_can_use_the_endpoint_as_its_cache", django_cache),
        test("connect_redis_finds_its_keys_everywhere", connect_redis_counts),
        test("redis_cli_works_at_every_peer", redis_cli),
        test("what_spring_session_asks_is_answered", spring_session),
        test("redis_benchmark_works_with_and_without_pipelines", redis_benchmark),
    ]
}

fn app_file(name: &str) -> PathBuf {
    workspace().join("testbed/tests/ecosystem/apps").join(name)
}

/// An app that the peers run, with the command's own environment.
fn app(command: &Command, arguments: &[PathBuf]) -> Table {
    let text = |text: &std::ffi::OsStr| text.to_str().expect("paths are UTF-8").to_owned();
    let words = std::iter::once(text(command.get_program()))
        .chain(command.get_args().map(text))
        .chain(arguments.iter().map(|path| text(path.as_os_str())));
    let mut app: Table = "name = 'counter'\nmatch = { path = '/' }\nsession = 'portable'\n\
                          ready = { path = '/healthz', timeout = '60s' }\n"
        .parse()
        .unwrap();
    app.insert("run".into(), words.map(toml::Value::from).collect::<Vec<_>>().into());
    let env = command
        .get_envs()
        .filter_map(|(name, value)| Some((text(name), toml::Value::from(text(value?)))));
    app.insert("env".into(), toml::Value::Table(env.collect()));
    app
}

fn express() -> Result<Table, Skipped> {
    Ok(app(&node("connect-redis")?, &[app_file("express.js")]))
}

fn flask() -> Result<Table, Skipped> {
    Ok(app(&python("python")?, &[app_file("with_flask.py")]))
}

fn django() -> Result<Table, Skipped> {
    Ok(app(&python("python")?, &[app_file("with_django.py")]))
}

fn starlette() -> Result<Table, Skipped> {
    python("uvicorn")?;
    Ok(app(&python("python")?, &[app_file("with_starlette.py")]))
}

fn rails() -> Result<Table, Skipped> {
    Ok(app(&ruby("puma")?, &[app_file("with_rails.rb")]))
}

fn php() -> Result<Table, Skipped> {
    let modules = debian_file("usr/lib/php")?;
    let found = std::fs::read_dir(&modules).ok().and_then(|mut folders| {
        folders.find_map(|folder| {
            let redis = folder.ok()?.path().join("redis.so");
            redis.exists().then_some(redis)
        })
    });
    let redis = found
        .ok_or_else(|| Skipped(format!("there is no redis.so below {}", modules.display())))?;
    let program = std::fs::read_dir(home().join("debian/usr/bin")).ok().and_then(|mut programs| {
        programs.find_map(|program| {
            let path = program.ok()?.path();
            let name = path.file_name()?.to_str()?;
            let version = name.strip_prefix("php")?;
            version.starts_with(|c: char| c.is_ascii_digit()).then_some(path)
        })
    });
    let program = program.ok_or_else(|| Skipped("there is no PHP".into()))?;
    // The port is in the environment, which the command line of PHP's own server does not read.
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!(
        "exec '{}' -n -d extension='{}' -d extension='{}' -S 127.0.0.1:$PORT \"$0\"",
        program.display(),
        redis.with_file_name("igbinary.so").display(),
        redis.display()
    ));
    shell.env("LD_LIBRARY_PATH", libraries());
    Ok(app(&shell, &[app_file("session.php")]))
}

async fn world(app: Table) -> World {
    let world = World::new(3, app).await;
    for index in 0..3 {
        world.admin(index, http::Method::POST, "/v1/apps/counter/start").await;
        world.reaches(index, "counter", "ready").await;
    }
    world
}

async fn asks(client: &mut Client, world: &World, index: usize, path: &str) -> String {
    let reply = client.get(world.http(index), path).await.expect("an answer");
    let text = reply.text();
    assert_eq!(reply.status, StatusCode::OK, "{path} at {}: {text}", world.name(index));
    text
}

/// A session that an app made through one peer is read and changed through every other, survives
/// the loss of the first, and ends everywhere when its user logs out.
async fn lives(app: Table) -> Tested {
    let mut world = world(app).await;
    let mut client = Client::new();
    for (turn, index) in [0, 0, 1, 2, 0, 2].into_iter().enumerate() {
        let visits = asks(&mut client, &world, index, "/visit").await;
        assert_eq!(visits, (turn + 1).to_string(), "at {}", world.name(index));
    }
    world.expect_errors();
    world.mesh.kill(0).unwrap();
    let visits = until("the session goes on without the lost peer", async || {
        let reply = client.get(world.http(1), "/visit").await.ok()?;
        reply.status.is_success().then(|| reply.text())
    })
    .await;
    assert_eq!(visits, "7", "nothing is lost and nothing counted twice");
    assert_eq!(asks(&mut client, &world, 2, "/visit").await, "8");
    let mut stranger = Client::new();
    assert_eq!(asks(&mut stranger, &world, 2, "/peek").await, "0");
    asks(&mut client, &world, 2, "/logout").await;
    assert_eq!(asks(&mut client, &world, 1, "/peek").await, "0");
    assert_eq!(asks(&mut client, &world, 1, "/visit").await, "1");
    Ok(())
}

async fn django_cache() -> Tested {
    let world = world(django()?).await;
    for index in 0..3 {
        assert_eq!(asks(&mut Client::new(), &world, index, "/cache").await, "fine");
    }
    Ok(())
}

async fn connect_redis_counts() -> Tested {
    let world = world(express()?).await;
    for index in [0, 1, 2, 0] {
        asks(&mut Client::new(), &world, index, "/visit").await;
    }
    for index in 0..3 {
        assert_eq!(asks(&mut Client::new(), &world, index, "/count").await, "4");
    }
    Ok(())
}

/// A mesh whose app is of no matter here.
async fn endpoints() -> World {
    World::new(3, crate::support::shop(crate::support::QUICK, "start = 'never'")).await
}

fn port(world: &World, index: usize) -> String {
    world.mesh.peer(index).ports.redis.port().to_string()
}

fn run(command: &mut Command) -> (Output, String) {
    let output = tokio::task::block_in_place(|| command.output()).expect("it starts");
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (output, said)
}

/// Spring Session itself comes from a registry that the tests do without. These are the commands of
/// its repository (`RedisSessionRepository`, the default), in their order.
async fn spring_session() -> Tested {
    let world = endpoints().await;
    let cli = |index: usize, words: &[&str]| -> Result<String, Skipped> {
        let mut command = debian("usr/bin/redis-cli")?;
        command.args(["-3", "-p", &port(&world, index)]).args(words);
        Ok(run(&mut command).1)
    };
    let (first, second) = ("spring:session:sessions:3f0c", "spring:session:sessions:9d1e");
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis();
    let (accessed, end) = (now.to_string(), (now + 1_800_000).to_string());
    let made = ["HMSET", first, "creationTime", &accessed, "maxInactiveInterval", "1800"];
    assert_eq!(cli(0, &[&made[..], &["lastAccessedTime", &accessed]].concat())?, "OK");
    assert_eq!(cli(0, &["PEXPIREAT", first, &end])?, "1");
    assert!(cli(1, &["HGETALL", first])?.contains("maxInactiveInterval 1800"));
    // A login changes the id and sets an attribute.
    assert_eq!(cli(1, &["EXISTS", first])?, "1");
    assert_eq!(cli(1, &["RENAME", first, second])?, "OK");
    assert_eq!(
        cli(1, &["HMSET", second, "sessionAttr:user", "ada", "sessionAttr:cart", ""])?,
        "OK"
    );
    assert_eq!(cli(1, &["PEXPIREAT", second, &end])?, "1");
    assert_eq!(cli(2, &["EXISTS", first])?, "0");
    let found = cli(2, &["HGETALL", second])?;
    assert!(found.contains("sessionAttr:user ada") && found.contains("creationTime"), "{found}");
    assert_eq!(cli(2, &["PEXPIRETIME", second])?, end);
    assert_eq!(cli(2, &["DEL", second])?, "1");
    assert_eq!(cli(0, &["HGETALL", second])?, "");
    Ok(())
}

async fn redis_cli() -> Tested {
    let world = endpoints().await;
    let cli = |index: usize, words: &[&str]| -> Result<String, Skipped> {
        let mut command = debian("usr/bin/redis-cli")?;
        command.args(["-p", &port(&world, index)]).args(words);
        Ok(run(&mut command).1)
    };
    for index in 0..3 {
        assert_eq!(cli(index, &["PING"])?, "PONG");
        assert!(cli(index, &["INFO"])?.contains("redis_version"));
        let listed = cli(index, &["COMMAND", "LIST"])?.lines().count().to_string();
        assert_eq!(cli(index, &["COMMAND", "COUNT"])?, listed);
    }
    assert_eq!(cli(0, &["SET", "a", "1", "EX", "600"])?, "OK");
    assert_eq!(cli(1, &["GET", "a"])?, "1");
    assert_eq!(cli(2, &["INCR", "a"])?, "2");
    let left: u32 = cli(1, &["TTL", "a"])?.parse().unwrap();
    assert!((500..=600).contains(&left), "{left}");
    assert_eq!(cli(1, &["-3", "HSET", "h", "x", "1", "y", "2"])?, "2");
    assert_eq!(cli(2, &["-3", "HGETALL", "h"])?, "x 1\ny 2");
    for index in 0..3 {
        let mut keys: Vec<String> = cli(index, &["--scan"])?.lines().map(Into::into).collect();
        keys.sort_unstable();
        assert_eq!(keys, ["a", "h"], "at {}", world.name(index));
    }
    assert_eq!(cli(0, &["DEL", "a", "h", "none"])?, "2");
    assert_eq!(cli(1, &["EXISTS", "a", "h"])?, "0");
    assert_eq!(cli(0, &["RPUSH", "l", "x", "y"])?, "2");
    assert_eq!(cli(1, &["EVAL", "return redis.call('RPOP', KEYS[1])", "1", "l"])?, "y");
    assert_eq!(cli(2, &["LRANGE", "l", "0", "-1"])?, "x");
    for refused in ["XADD", "GEOADD", "PFADD", "SHUTDOWN"] {
        let said = cli(0, &[refused, "a", "b"])?;
        assert!(said.starts_with("ERR unknown command"), "{refused}: {said}");
    }
    Ok(())
}

async fn redis_benchmark() -> Tested {
    let world = endpoints().await;
    for pipeline in ["1", "16"] {
        let mut command = debian("usr/bin/redis-benchmark")?;
        command.args(["-p", &port(&world, 0), "-n", "500", "-c", "10", "-r", "100", "--csv"]);
        command.args(["-d", "1024", "-P", pipeline, "-t", "ping,set,get,incr,hset,mset"]);
        let (output, said) = run(&mut command);
        assert!(output.status.success(), "{output:?}");
        let tests: Vec<&str> = said.lines().skip(1).filter_map(|it| it.split('"').nth(1)).collect();
        for expected in ["PING_INLINE", "PING_MBULK", "SET", "GET", "INCR", "HSET"] {
            assert!(tests.contains(&expected), "{expected}: {said}");
        }
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!errors.contains("rror"), "{errors}");
    }
    Ok(())
}
