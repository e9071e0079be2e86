//! What is in `deploy/`, judged by the tools that will read it, and by the binary itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use libtest_mimic::Trial;
use serde_json::Value as Json;
use toml::Table;
use warmhop_testbed::client::Client;
use warmhop_testbed::workspace;

use crate::installed::{Skipped, Tested, home, python};
use crate::support::{QUICK, World, program_built, shop, until};
use crate::test;

/// The tests of this module.
pub(crate) fn trials() -> Vec<Trial> {
    vec![
        test("deploy::systemd_accepts_the_unit", async || unit()),
        test("deploy::hadolint_accepts_the_container_file", async || container()),
        test("deploy::the_containers_health_check_needs_no_token", health_check),
        test("deploy::kubernetes_schemas_accept_the_manifests", async || schemas()),
        test("deploy::the_manifests_agree_with_each_other_and_with_warmhop_check", async || {
            agreement()
        }),
        test("deploy::peers_work_with_identities_that_another_tool_issued", foreign_identities),
    ]
}

fn deploy(path: &str) -> PathBuf {
    workspace().join("deploy").join(path)
}

/// Runs it; skipped where the program is not installed.
fn run(command: &mut Command) -> Result<Output, Skipped> {
    let program = command.get_program().to_string_lossy().into_owned();
    command.output().map_err(|error| Skipped(format!("{program} does not run here: {error}")))
}

fn accepted(output: &Output) {
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A folder for one test, empty.
fn folder(name: &str) -> PathBuf {
    let folder = home().join(format!("deploy-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("a folder for the test");
    folder
}

fn unit() -> Tested {
    run(Command::new("systemd-analyze").arg("--version"))?;
    let text = std::fs::read_to_string(deploy("systemd/warmhop.service")).unwrap();
    assert_eq!(text.matches("=/usr/local/bin/warmhop ").count(), 1, "one program is started");
    // The verdict includes that the program is there.
    let program = program_built("warmhop");
    let folder = folder("unit");
    let unit = folder.join("warmhop.service");
    std::fs::write(&unit, text.replace("/usr/local/bin/warmhop", program.to_str().unwrap()))
        .unwrap();
    let verify =
        |unit: &Path| run(Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(unit));
    let output = verify(&unit)?;
    accepted(&output);
    // A key that it does not know is a warning only, and would be ignored where it matters.
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("warmhop.service"), "{said}");

    let broken = text.replace("KillMode=mixed", "KillMode=mixed\nWatchDog=30");
    std::fs::write(&unit, broken.replace("/usr/local/bin/warmhop", program.to_str().unwrap()))
        .unwrap();
    let said = String::from_utf8_lossy(&verify(&unit)?.stderr).into_owned();
    assert!(said.contains("WatchDog"), "the verdict would not notice a mistake: {said}");
    std::fs::remove_dir_all(folder).unwrap();
    Ok(())
}

fn container() -> Tested {
    let file = deploy("container/Containerfile");
    accepted(&run(python("hadolint")?.arg("--failure-threshold=style").arg(&file))?);
    let text = std::fs::read_to_string(&file).unwrap();
    let root = folder("container").join("Containerfile");
    std::fs::write(&root, text.replace("WORKDIR /srv", "WORKDIR srv")).unwrap();
    let output = run(python("hadolint")?.arg("--failure-threshold=style").arg(&root))?;
    assert!(!output.status.success(), "the verdict would not notice a mistake");
    std::fs::remove_dir_all(root.parent().expect("it is in a folder")).unwrap();
    Ok(())
}

async fn health_check() -> Tested {
    let file = std::fs::read_to_string(deploy("container/Containerfile")).unwrap();
    let (_, check) = file.split_once("\nHEALTHCHECK ").expect("a health check");
    let (_, check) = check.lines().next().unwrap().split_once(" CMD ").unwrap();
    let check: Vec<String> = serde_json::from_str(check).expect("the form that needs no shell");
    let with_token = "[admin]\ntoken = 'a-token-of-length'";
    let mut world = World::prepare(1, vec![shop(QUICK, "")], with_token);
    let port = world.mesh.peer(0).ports.admin.port().to_string();
    let verdict = || {
        let words: Vec<String> = check.iter().map(|word| word.replace("9001", &port)).collect();
        run(Command::new(&words[0]).args(&words[1..])).map(|output| output.status.success())
    };
    assert!(!verdict()?, "nobody is there yet");
    world.mesh.start(0).unwrap();
    until("it is healthy", async || verdict().is_ok_and(|healthy| healthy).then_some(())).await;
    Ok(())
}

/// The manifests of Kubernetes' own kinds; there is a schema for each.
const MANIFESTS: [&str; 5] =
    ["configmap.yaml", "services.yaml", "statefulset.yaml", "disruption.yaml", "network.yaml"];
/// Those of cert-manager's kinds, which only it can judge.
const CERTIFICATES: &str = "certificates.yaml";

fn schemas() -> Tested {
    let files = MANIFESTS.map(|name| deploy("kubernetes").join(name));
    accepted(&run(python("kubernetes-validate")?.arg("--strict").args(&files))?);
    let text = std::fs::read_to_string(&files[2]).unwrap();
    let folder = folder("schemas");
    let broken = folder.join("statefulset.yaml");
    std::fs::write(&broken, text.replace("serviceName:", "servicesName:")).unwrap();
    let output = run(python("kubernetes-validate")?.arg("--strict").arg(&broken))?;
    assert!(!output.status.success(), "the verdict would not notice a mistake");
    std::fs::remove_dir_all(folder).unwrap();
    Ok(())
}

/// The documents of a YAML file.
fn documents(name: &str) -> Result<Vec<Json>, Skipped> {
    let script = "import json, sys, yaml\n\
                  print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))";
    let file = deploy("kubernetes").join(name);
    let output = run(python("python")?.args(["-c", script]).arg(&file))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("No module named") {
        return Err(Skipped(format!("there is no reader of YAML: {said}")));
    }
    accepted(&output);
    Ok(serde_json::from_slice(&output.stdout).expect("JSON"))
}

fn list<'a>(value: &'a Json, pointer: &str) -> Vec<&'a Json> {
    let found = value.pointer(pointer).and_then(Json::as_array);
    found.unwrap_or_else(|| panic!("{pointer} in {value:#}")).iter().collect()
}

fn text<'a>(value: &'a Json, pointer: &str) -> &'a str {
    let found = value.pointer(pointer).and_then(Json::as_str);
    found.unwrap_or_else(|| panic!("{pointer} in {value:#}"))
}

fn agreement() -> Tested {
    let kustomization = documents("kustomization.yaml")?.remove(0);
    let mut listed: Vec<&str> =
        list(&kustomization, "/resources").into_iter().filter_map(Json::as_str).collect();
    listed.sort_unstable();
    let mut expected: Vec<&str> = MANIFESTS.into_iter().chain([CERTIFICATES]).collect();
    expected.sort_unstable();
    assert_eq!(listed, expected, "the manifests that are applied are those that are tested");

    let set = documents("statefulset.yaml")?.remove(0);
    let name = text(&set, "/metadata/name");
    let replicas = set["spec"]["replicas"].as_u64().expect("a number");
    let pod = &set["spec"]["template"];
    let labels = &pod["metadata"]["labels"];
    assert_eq!(&set["spec"]["selector"]["matchLabels"], labels);
    let container = list(pod, "/spec/containers")[0];
    let ports: BTreeMap<&str, (u64, &str)> = list(container, "/ports")
        .into_iter()
        .map(|port| {
            let number = port["containerPort"].as_u64().expect("a number");
            (text(port, "/name"), (number, text(port, "/protocol")))
        })
        .collect();

    // What a drain takes at most with every default, and what preStop takes before it.
    let grace = pod["spec"]["terminationGracePeriodSeconds"].as_u64().expect("a number");
    assert!(grace >= 82 + 5, "{grace}");

    let headless = referred(&set, &ports)?;

    // The pod's environment, in which the configuration is read.
    let environment: BTreeMap<&str, &str> = list(container, "/env")
        .into_iter()
        .map(|variable| match text(variable, "/name") {
            "POD_NAME" => ("POD_NAME", "warmhop-0"),
            "POD_IP" => ("POD_IP", "192.0.2.1"),
            name => (name, "0123456789abcdef0123456789abcdef"),
        })
        .collect();
    let map = documents("configmap.yaml")?.remove(0);
    let folder = folder("agreement");
    let file = folder.join("warmhop.toml");
    std::fs::write(&file, text(&map, "/data/warmhop.toml")).unwrap();
    let check = || {
        let mut command = Command::new(program_built("warmhop"));
        command.arg("check").arg(&file).env_clear();
        command
    };
    let output = check().envs(&environment).output().unwrap();
    accepted(&output);
    let config: Table = String::from_utf8(output.stdout).unwrap().parse().unwrap();
    let bare = check().output().unwrap();
    assert_eq!(bare.status.code(), Some(2), "nothing but the environment names the peer");
    std::fs::remove_dir_all(folder).unwrap();

    let port_of = |address: &str| address.rsplit_once(':').unwrap().1.parse::<u64>().unwrap();
    let setting = |table: &str, key: &str| config[table][key].as_str().unwrap();
    assert_eq!(config["http"]["listen"][0].as_str().map(port_of), Some(ports["http"].0));
    assert_eq!(port_of(setting("mesh", "listen")), ports["mesh"].0);
    assert_eq!(setting("mesh", "advertise"), format!("192.0.2.1:{}", ports["mesh"].0));
    assert_eq!(port_of(setting("admin", "listen")), ports["admin"].0);
    let seed = format!("{}:{}", text(&headless, "/metadata/name"), ports["mesh"].0);
    assert_eq!(config["mesh"]["seeds"][0].as_str(), Some(&*seed));

    mounted(pod, container, &config, replicas);
    certified(name, pod, replicas, config["cluster"].as_str().unwrap())
}

/// Every name that is referred to is there. Returns the headless service.
fn referred(set: &Json, ports: &BTreeMap<&str, (u64, &str)>) -> Result<Json, Skipped> {
    let pod = &set["spec"]["template"];
    let (labels, container) = (&pod["metadata"]["labels"], list(pod, "/spec/containers")[0]);
    let services = documents("services.yaml")?;
    for service in &services {
        assert_eq!(&service["spec"]["selector"], labels, "{service:#}");
        for port in list(service, "/spec/ports") {
            let (_, protocol) = ports[text(port, "/targetPort")];
            assert_eq!(text(port, "/protocol"), protocol, "{port}");
        }
    }
    let headless = services.iter().find(|service| service["spec"]["clusterIP"] == "None");
    let headless = headless.expect("a headless service");
    assert_eq!(headless["spec"]["publishNotReadyAddresses"], true);
    assert_eq!(set["spec"]["serviceName"], headless["metadata"]["name"]);
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        assert_eq!(text(&container[probe], "/httpGet/port"), "admin");
    }
    let budget = documents("disruption.yaml")?.remove(0);
    assert_eq!(&budget["spec"]["selector"]["matchLabels"], labels);
    let network = documents("network.yaml")?.remove(0);
    assert_eq!(&network["spec"]["podSelector"]["matchLabels"], labels);
    for rule in list(&network, "/spec/ingress") {
        for port in list(rule, "/ports") {
            assert_eq!(ports[text(port, "/port")].1, text(port, "/protocol"), "{port}");
        }
    }
    Ok(headless.clone())
}

/// What the configuration names is where the pod mounts it, for every peer.
fn mounted(pod: &Json, container: &Json, config: &Table, replicas: u64) {
    let mount = |path: &str| -> (&Json, String) {
        let mounts = list(container, "/volumeMounts");
        let mount = mounts.into_iter().find(|mount| path.starts_with(text(mount, "/mountPath")));
        let mount = mount.unwrap_or_else(|| panic!("nothing is mounted at {path}"));
        let volumes = list(pod, "/spec/volumes");
        let volume = volumes.into_iter().find(|volume| volume["name"] == mount["name"]);
        let rest = path[text(mount, "/mountPath").len()..].trim_start_matches('/').to_owned();
        (volume.expect("a volume of that name"), rest)
    };
    let run = list(container, "/args");
    let (volume, file) = mount(run.last().and_then(|it| it.as_str()).expect("a configuration"));
    assert_eq!((text(volume, "/configMap/name"), &*file), ("warmhop", "warmhop.toml"));
    // A file that is mounted by itself stays as it was when the pod began.
    let mounts = list(container, "/volumeMounts");
    assert!(mounts.iter().all(|mount| mount["subPath"].is_null()), "{mounts:#?}");
    let (volume, file) = mount(config["mesh"]["cookie_key"].as_str().unwrap());
    assert!(list(volume, "/secret/items").iter().any(|item| item["path"] == *file), "{volume:#}");
    let (volume, own) = mount(config["mesh"]["identity"].as_str().unwrap());
    assert_eq!(own, "warmhop-0");
    let sources = list(volume, "/projected/sources");
    assert_eq!(sources.len() as u64, replicas, "one identity for each peer");
    for (number, source) in sources.into_iter().enumerate() {
        let files: Vec<&str> =
            list(source, "/secret/items").into_iter().map(|item| text(item, "/path")).collect();
        let expected = ["ca", "cert", "key"].map(|file| format!("warmhop-{number}/{file}.pem"));
        assert_eq!(files, expected);
    }
}

/// cert-manager is asked for the identity of every peer, in the form that a peer takes.
fn certified(name: &str, pod: &Json, replicas: u64, cluster: &str) -> Tested {
    let documents = documents(CERTIFICATES)?;
    let certificates: Vec<&Json> = documents
        .iter()
        .filter(|document| document["kind"] == "Certificate" && document["spec"]["isCA"] != true)
        .collect();
    assert_eq!(certificates.len() as u64, replicas);
    let volumes = list(pod, "/spec/volumes");
    let identity = volumes.into_iter().find(|volume| volume["name"] == "identity").unwrap();
    for (number, certificate) in certificates.into_iter().enumerate() {
        let spec = &certificate["spec"];
        let uri = format!("spiffe://{cluster}/peer/{name}-{number}");
        assert_eq!(spec["uris"], serde_json::json!([uri]));
        assert_eq!(spec["dnsNames"], serde_json::json!(["warmhop.internal"]));
        let usages = ["digital signature", "server auth", "client auth"];
        assert_eq!(spec["usages"], serde_json::json!(usages));
        let source = list(identity, "/projected/sources")[number];
        assert_eq!(source["secret"]["name"], spec["secretName"]);
        let issuer = documents.iter().find(|document| {
            document["kind"] == "Issuer"
                && document["metadata"]["name"] == spec["issuerRef"]["name"]
        });
        assert!(issuer.is_some(), "{certificate:#}");
    }
    Ok(())
}

/// Issues what `certificates.yaml` asks for, as far as peers look at it, by OpenSSL.
fn issue(ca: &Path, dir: &Path, cluster: &str, peer: &str, form: &str) -> Result<(), Skipped> {
    let openssl = |arguments: &[&str]| -> Result<(), Skipped> {
        accepted(&run(Command::new("openssl").args(arguments))?);
        Ok(())
    };
    let path = |dir: &Path, name: &str| dir.join(name).to_str().expect("UTF-8").to_owned();
    let (ca_cert, ca_key) = (path(ca, "ca.crt"), path(ca, "ca.key"));
    if !Path::new(&ca_cert).exists() {
        let arguments = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
                         -subj /CN=authority -addext keyUsage=critical,keyCertSign";
        let mut arguments: Vec<&str> = arguments.split_whitespace().collect();
        arguments.extend(["-keyout", &ca_key, "-out", &ca_cert]);
        openssl(&arguments)?;
    }
    let (key, request, cert) = (path(dir, "key.pem"), path(dir, "request"), path(dir, "cert.pem"));
    // PKCS #8, or the older form that many tools write by default.
    match form {
        "pkcs8" => openssl(&[
            "genpkey",
            "-algorithm",
            "EC",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-out",
            &key,
        ])?,
        "sec1" => openssl(&["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", &key])?,
        _ => openssl(&["genrsa", "-traditional", "-out", &key, "2048"])?,
    }
    openssl(&["req", "-new", "-key", &key, "-subj", &format!("/CN={peer}"), "-out", &request])?;
    let extensions = path(dir, "extensions");
    let text = format!(
        "subjectAltName=DNS:warmhop.internal,URI:spiffe://{cluster}/peer/{peer}\n\
         keyUsage=digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\n"
    );
    std::fs::write(&extensions, text).unwrap();
    openssl(&[
        "x509",
        "-req",
        "-in",
        &request,
        "-CA",
        &ca_cert,
        "-CAkey",
        &ca_key,
        "-CAcreateserial",
        "-days",
        "1",
        "-extfile",
        &extensions,
        "-out",
        &cert,
    ])?;
    std::fs::copy(&ca_cert, dir.join("ca.pem")).unwrap();
    Ok(())
}

/// Three peers whose identities come from OpenSSL, each with a private key of another form, and
/// their cookie key from one file: they meet, hop, and know each other's clients.
async fn foreign_identities() -> Tested {
    run(Command::new("openssl").arg("version"))?;
    let folder = folder("identities");
    let output = run(Command::new("openssl").args(["rand", "-base64", "32"]))?;
    let cookie_key = folder.join("cookie.key");
    std::fs::write(&cookie_key, &output.stdout).unwrap();

    let mut world = World::prepare(3, vec![shop(QUICK, "")], "");
    for (index, form) in ["pkcs8", "sec1", "rsa"].into_iter().enumerate() {
        let peer = world.name(index).to_owned();
        let dir = folder.join(&peer);
        std::fs::create_dir_all(&dir).unwrap();
        let mut cluster = String::new();
        world
            .mesh
            .reconfigure(index, |config| {
                cluster = config["cluster"].as_str().expect("a name").to_owned();
                let mesh = config["mesh"].as_table_mut().expect("a table");
                mesh.insert("identity".into(), dir.to_str().expect("UTF-8").into());
                mesh.insert("cookie_key".into(), cookie_key.to_str().expect("UTF-8").into());
            })
            .unwrap();
        issue(&folder, &dir, &cluster, &peer, form)?;
        world.mesh.start(index).unwrap();
    }
    if let Err(error) = world.mesh.formed().await {
        panic!("{error:#}");
    }
    world.warm(0).await;
    let mut client = Client::new();
    for (turn, index) in [1, 2, 0, 1].into_iter().enumerate() {
        let reply = client.post(world.http(index), "/cart/add?item=book").await.unwrap();
        let reply = reply.ok().unwrap();
        assert_eq!(reply.json().unwrap()["count"], turn as u64 + 1, "{reply:?}");
    }
    drop(world);
    std::fs::remove_dir_all(folder).unwrap();
    Ok(())
}
