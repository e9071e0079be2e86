use serde::Deserialize;
use serde_json::json;

use super::*;

fn status() -> Status {
    Status::deserialize(json!({
        "peer": {"name": "peer-1", "http": ["10.0.0.1:8081", "10.0.0.1:8444"]},
        "peers": [
            {"name": "peer-2", "alive": false, "http": "10.0.0.2:8081"},
            {"name": "peer-10", "alive": true, "http": "[fd00::3]:8081"},
            {"name": "hop-only", "alive": true, "http": null}
        ]
    }))
    .unwrap()
}

fn recipe(balancer: Balancer, status: &Status) -> Result<String, String> {
    with(balancer, Affinity::Mesh, status)
}

fn with(balancer: Balancer, affinity: Affinity, status: &Status) -> Result<String, String> {
    super::recipe(Wanted { balancer, affinity, listen: "0.0.0.0:80".parse().unwrap() }, status)
}

#[test]
fn a_cookie_of_the_balancers_own_leaves_that_of_the_mesh_alone() {
    for balancer in Balancer::value_variants() {
        let text = with(*balancer, Affinity::Own, &status()).unwrap();
        assert!(text.contains("warmhop_lb"), "{balancer:?}: {text}");
        for read in ["req.hdr(cookie)", "$cookie_warmhop ", "stickysession=warmhop\n", "warmhop=["]
        {
            assert!(!text.contains(read), "{balancer:?}: {text}");
        }
    }
    let text = with(Balancer::Nginx, Affinity::Own, &status()).unwrap();
    assert!(text.contains("\"~(^|[ ,])\\[fd00::3\\]:8081$\" peer-10;"), "{text}");
}

#[test]
fn nginx_gives_its_cookie_to_no_client_that_has_it() {
    let text = with(Balancer::Nginx, Affinity::Own, &status()).unwrap();
    assert!(text.contains("add_header Set-Cookie $warmhop_set_cookie always;"), "{text}");
    assert!(text.contains("    \"~^(.+):\\1$\" \"\";\n"), "{text}");
    assert!(!recipe(Balancer::Nginx, &status()).unwrap().contains("Set-Cookie"));
}

#[test]
fn every_balancer_but_nginx_asks_whether_a_peer_takes_traffic() {
    for balancer in [Balancer::Haproxy, Balancer::Apache, Balancer::Envoy] {
        assert!(recipe(balancer, &status()).unwrap().contains(READY_PATH), "{balancer:?}");
    }
}

#[test]
fn every_front_door_is_in_every_recipe_and_the_peer_without_one_in_none() {
    for balancer in Balancer::value_variants() {
        let text = recipe(*balancer, &status()).unwrap();
        for part in ["10.0.0.1", "10.0.0.2", "fd00::3", "8081"] {
            assert!(text.contains(part), "{balancer:?}: {text}");
        }
        assert!(!text.contains("hop-only"), "{balancer:?}");
        assert!(!text.contains("8444"), "one door of each peer is enough: {balancer:?}");
    }
}

#[test]
fn haproxy_follows_the_end_of_the_cookie_while_that_peer_is_up() {
    let text = recipe(Balancer::Haproxy, &status()).unwrap();
    let expected = "\
    use-server peer-1 if { req.hdr(cookie) -m reg '^( *(([^w; ][^;]*)?|w([^a;][^;]*)?|wa([^r;][^;]*)?|war([^m;][^;]*)?|warm([^h;][^;]*)?|warmh([^o;][^;]*)?|warmho([^p;][^;]*)?|warmhop([^=;][^;]*)?);)* *warmhop=[^;]*[.]peer-1 *(;.*)?$' }
    use-server peer-2 if { req.hdr(cookie) -m reg '^( *(([^w; ][^;]*)?|w([^a;][^;]*)?|wa([^r;][^;]*)?|war([^m;][^;]*)?|warm([^h;][^;]*)?|warmh([^o;][^;]*)?|warmho([^p;][^;]*)?|warmhop([^=;][^;]*)?);)* *warmhop=[^;]*[.]peer-2 *(;.*)?$' }
    use-server peer-10 if { req.hdr(cookie) -m reg '^( *(([^w; ][^;]*)?|w([^a;][^;]*)?|wa([^r;][^;]*)?|war([^m;][^;]*)?|warm([^h;][^;]*)?|warmh([^o;][^;]*)?|warmho([^p;][^;]*)?|warmhop([^=;][^;]*)?);)* *warmhop=[^;]*[.]peer-10 *(;.*)?$' }
    server peer-1 10.0.0.1:8081
    server peer-2 10.0.0.2:8081
    server peer-10 [fd00::3]:8081

";
    assert!(text.contains(expected), "{text}");
    assert!(text.contains("option redispatch"));
}

#[test]
fn nginx_maps_the_end_of_the_cookie_to_a_peer_with_the_others_behind_it() {
    let text = recipe(Balancer::Nginx, &status()).unwrap();
    assert!(text.contains("    \"~\\.peer-10$\" warmhop_peer_peer-10;\n"), "{text}");
    let upstream = "\
upstream warmhop_peer_peer-2 {
    server 10.0.0.2:8081 max_fails=1 fail_timeout=2s;
    server 10.0.0.1:8081 backup;
    server [fd00::3]:8081 backup;
}
";
    assert!(text.contains(upstream), "{text}");
    assert_eq!(text.matches('{').count(), text.matches('}').count());
}

#[test]
fn nginx_leaves_the_size_of_a_body_to_the_app() {
    let text = recipe(Balancer::Nginx, &status()).unwrap();
    assert!(
        text.contains("        client_max_body_size 0;\n"),
        "it refuses more than 1 MiB: {text}"
    );
}

#[test]
fn a_client_cannot_say_for_a_balancer_where_it_comes_from() {
    for (balancer, lines) in [
        (Balancer::Haproxy, &["del-header Forwarded\n", "set-header X-Forwarded-Proto "][..]),
        (Balancer::Nginx, &["Forwarded \"\";", "X-Forwarded-Proto $scheme;"]),
        (Balancer::Apache, &["unset Forwarded\n", "set X-Forwarded-Proto "]),
        (Balancer::Envoy, &["headers_to_remove: [forwarded,", "use_remote_address: true\n"]),
    ] {
        let text = recipe(balancer, &status()).unwrap();
        for line in lines {
            assert!(text.contains(line), "{balancer:?}: {line:?} in {text}");
        }
    }
}

#[test]
fn every_balancer_waits_an_hour_for_a_slow_answer_or_a_silent_stream() {
    for (balancer, lines) in [
        (
            Balancer::Haproxy,
            &["timeout client 1h\n", "timeout server 1h\n", "timeout tunnel 1h\n"][..],
        ),
        (Balancer::Nginx, &["proxy_read_timeout 1h;", "proxy_send_timeout 1h;"]),
        (Balancer::Apache, &["ProxyTimeout 3600\n"]),
        (Balancer::Envoy, &["stream_idle_timeout: 3600s\n", "timeout: 0s }\n"]),
    ] {
        let text = recipe(balancer, &status()).unwrap();
        for line in lines {
            assert!(text.contains(line), "{balancer:?}: {line:?} in {text}");
        }
    }
}

#[test]
fn haproxy_and_envoy_let_grpc_pass() {
    let text = recipe(Balancer::Haproxy, &status()).unwrap();
    assert_eq!(text.matches("proto h2").count(), 1, "in a backend of its own: {text}");
    let expected = "\
    default-server proto h2
    use-server peer-1 if { req.hdr(cookie) -m reg '^( *(([^w; ][^;]*)?|w([^a;][^;]*)?|wa([^r;][^;]*)?|war([^m;][^;]*)?|warm([^h;][^;]*)?|warmh([^o;][^;]*)?|warmho([^p;][^;]*)?|warmhop([^=;][^;]*)?);)* *warmhop=[^;]*[.]peer-1 *(;.*)?$' }
    use-server peer-2 if { req.hdr(cookie) -m reg '^( *(([^w; ][^;]*)?|w([^a;][^;]*)?|wa([^r;][^;]*)?|war([^m;][^;]*)?|warm([^h;][^;]*)?|warmh([^o;][^;]*)?|warmho([^p;][^;]*)?|warmhop([^=;][^;]*)?);)* *warmhop=[^;]*[.]peer-2 *(;.*)?$' }
    use-server peer-10 if { req.hdr(cookie) -m reg '^( *(([^w; ][^;]*)?|w([^a;][^;]*)?|wa([^r;][^;]*)?|war([^m;][^;]*)?|warm([^h;][^;]*)?|warmh([^o;][^;]*)?|warmho([^p;][^;]*)?|warmhop([^=;][^;]*)?);)* *warmhop=[^;]*[.]peer-10 *(;.*)?$' }
    server peer-1 10.0.0.1:8081 track warmhop/peer-1
";
    assert!(text.contains(expected), "{text}");
    let own = with(Balancer::Haproxy, Affinity::Own, &status()).unwrap();
    assert!(own.contains("    default-server proto h2\n    server peer-1 "), "{own}");
    let text = recipe(Balancer::Envoy, &status()).unwrap();
    assert_eq!(text.matches("use_downstream_protocol_config: { http").count(), 4, "{text}");
}

#[test]
fn a_peer_alone_has_no_backup_and_no_rival() {
    let alone =
        Status::deserialize(json!({"peer": {"name": "p", "http": ["127.0.0.1:8081"]}})).unwrap();
    assert!(!recipe(Balancer::Nginx, &alone).unwrap().contains("backup"));
    let envoy = recipe(Balancer::Envoy, &alone).unwrap();
    assert!(!envoy.contains("priority: 1"), "{envoy}");
}

#[test]
fn apache_has_a_route_for_each_member() {
    let text = recipe(Balancer::Apache, &status()).unwrap();
    assert!(text.contains("BalancerMember \"http://10.0.0.2:8081\" route=peer-2 "), "{text}");
    assert!(text.contains("ProxySet stickysession=warmhop\n"));
}

#[test]
fn apache_leaves_paths_as_they_are() {
    let text = recipe(Balancer::Apache, &status()).unwrap();
    for line in [
        "AllowEncodedSlashes NoDecode\n",
        "MergeSlashes Off\n",
        "ProxyPass        \"/\" \"balancer://warmhop/\" nocanon\n",
    ] {
        assert!(text.contains(line), "{line}{text}");
    }
}

#[test]
fn envoy_has_a_route_and_a_cluster_for_each_peer_with_the_others_second() {
    let text = recipe(Balancer::Envoy, &status()).unwrap();
    assert!(text.contains("regex: '(.*;\\s*)?warmhop=[^;]*\\.peer-2(;.*)?'"), "{text}");
    for cluster in ["any", "peer_peer-1", "peer_peer-2", "peer_peer-10"] {
        assert!(text.contains(&format!("  - name: warmhop_{cluster}\n")), "{cluster}");
        assert!(text.contains(&format!("cluster: warmhop_{cluster},")), "{cluster}");
    }
    assert_eq!(text.matches("priority: 1").count(), 6, "two others for each of three");
    assert!(text.contains("address: \"fd00::3\""), "no brackets around an address of Envoy's");
}

#[test]
fn a_front_door_on_every_address_is_named_by_where_the_mesh_reaches_its_peer() {
    let status = Status::deserialize(json!({
        "peer": {"name": "peer-1", "http": ["0.0.0.0:8080"], "mesh": "192.0.2.1:7001"},
        "peers": [
            {"name": "peer-2", "http": "[::]:8081", "mesh": "[fd00::2]:7001"},
            {"name": "peer-3", "http": "[::]:8082", "mesh": "192.0.2.3:7001"},
            {"name": "peer-4", "http": "192.0.2.44:8083", "mesh": "192.0.2.4:7001"}
        ]
    }))
    .unwrap();
    let text = recipe(Balancer::Haproxy, &status).unwrap();
    let expected = "\
    server peer-1 192.0.2.1:8080
    server peer-2 [fd00::2]:8081
    server peer-3 192.0.2.3:8082
    server peer-4 192.0.2.44:8083
";
    assert!(text.contains(expected), "{text}");
    assert!(!text.contains("Replace"), "{text}");
}

#[test]
fn without_an_address_to_advertise_the_operator_has_to_give_one() {
    let status = Status::deserialize(json!({
        "peer": {"name": "peer-1", "http": ["0.0.0.0:8080"], "mesh": "[fd00::1]:7001"},
        "peers": [
            {"name": "peer-2", "http": "0.0.0.0:8080"},
            {"name": "peer-3", "http": "[::]:8080", "mesh": "0.0.0.0:7001"}
        ]
    }))
    .unwrap();
    let text = recipe(Balancer::Haproxy, &status).unwrap();
    for host in ["0.0.0.0", "[::]"] {
        assert!(text.contains(&format!("# Replace {host} by the address that")), "{text}");
        assert!(text.contains(&format!(" {host}:8080\n")), "{text}");
    }
}

#[test]
fn names_of_peers_are_taken_for_nothing_else() {
    let others = ["default", "include", "peer_any", "any2", "A", "a"]
        .map(|name| json!({"name": name, "http": format!("127.0.0.1:{}", name.len())}));
    let status =
        json!({"peer": {"name": "any", "http": ["127.0.0.1:80"]}, "peers": others.to_vec()});
    let status = Status::deserialize(status).unwrap();
    for (balancer, begin) in [(Balancer::Nginx, "upstream "), (Balancer::Envoy, "  - name: ")] {
        let text = recipe(balancer, &status).unwrap();
        let groups = text.lines().filter_map(|line| line.strip_prefix(begin));
        let mut groups: Vec<String> =
            groups.filter(|it| it.starts_with("warmhop_")).map(str::to_ascii_lowercase).collect();
        assert_eq!(groups.len(), 8, "each peer, and all of them: {text}");
        groups.sort_unstable();
        groups.dedup();
        assert_eq!(groups.len(), 8, "no two are one, whatever their case: {text}");
    }
    let own = with(Balancer::Nginx, Affinity::Own, &status).unwrap();
    assert!(own.contains("    \"~^include$\" warmhop_peer_include;\n"), "{own}");
    assert!(own.contains("    \"~^a$\" warmhop_peer2_a;\n"), "{own}");
}

#[test]
fn nothing_but_names_and_addresses_gets_into_a_configuration() {
    let status = Status::deserialize(json!({
        "peer": {"name": "peer-1", "http": ["127.0.0.1:8081"]},
        "peers": [
            {"name": "x }\nevil", "http": "127.0.0.1:1"},
            {"name": "peer-2", "http": "127.0.0.1:2;\nevil"},
            {"name": "peer-3", "http": "no-port"},
            {"name": "peer-4", "http": "evil;include$x:80"},
            {"name": "peer-5", "http": "'evil':80"}
        ]
    }))
    .unwrap();
    for balancer in Balancer::value_variants() {
        let text = recipe(*balancer, &status).unwrap();
        assert!(!text.contains("evil") && !text.contains("no-port"), "{text}");
    }
}

#[test]
fn a_mesh_without_front_doors_has_no_recipe() {
    recipe(Balancer::Nginx, &Status::default()).unwrap_err();
}

#[test]
fn every_recipe_reads_the_cookie_that_the_mesh_is_configured_with() {
    let mut status = status();
    status.cookie = "__Host-shop".into();
    for (balancer, read) in [
        (Balancer::Haproxy, " *__Host-shop=[^;]*[.]peer-2 *(;"),
        (Balancer::Nginx, "map $http_cookie $warmhop_upstream {"),
        (Balancer::Apache, "stickysession=__Host-shop\n"),
        (Balancer::Envoy, "__Host-shop=[^;]*"),
    ] {
        let text = recipe(balancer, &status).unwrap();
        assert!(text.contains(read) && !text.contains("warmhop="), "{balancer:?}: {text}");
    }
    status.cookie = "plain".into();
    assert!(
        recipe(Balancer::Nginx, &status).unwrap().contains("map $cookie_plain $warmhop_upstream")
    );
    status.cookie = "a' \n b".into();
    assert!(recipe(Balancer::Haproxy, &status).is_err());
}

#[test]
fn balancers_follow_and_keep_aliases_where_cookies_hide_the_names_of_peers() {
    let alias = "00112233445566778899aabbccddeeff";
    let mut status = status();
    status.peers[0].route = alias.into();
    for balancer in Balancer::value_variants() {
        let text = recipe(*balancer, &status).unwrap();
        assert!(text.contains(alias), "{balancer:?}: {text}");
        for read in ["[.]peer-2 ", "\\.peer-2$", "route=peer-2 ", "\\.peer-2("] {
            assert!(!text.contains(read), "{balancer:?} follows the name: {text}");
        }
    }
    for balancer in [Balancer::Haproxy, Balancer::Nginx, Balancer::Apache] {
        let text = with(balancer, Affinity::Own, &status).unwrap();
        assert!(text.contains(alias), "{balancer:?}: its own cookie shows no name either: {text}");
    }
    status.peers[0].route = "a b;".into();
    assert!(!recipe(Balancer::Nginx, &status).unwrap().contains("a b;"), "it is no route");
}
