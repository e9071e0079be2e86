//! `warmhop lb`: the configuration of a load balancer in front of the mesh, affinity included.
//!
//! The cookie `warmhop` ends in a dot and the route of the peer that the client should come back
//! to: its name, or an alias if clients are not to see names. Each recipe reads that ending, sends
//! the client there while that peer is healthy, and to any other peer when it is not: every peer
//! can serve every request, so a wrong choice costs only a hop.
//!
//! Health is checked at the front door itself ([`READY_PATH`]), since the admin listener's
//! `/readyz` stays on loopback: a peer whose apps are cold is in rotation, and one that drains is
//! not. nginx, whose active checks are commercial, learns it from failed requests.
//!
//! A client's own claim about where it comes from is not passed on: each recipe removes `Forwarded`
//! and `X-Forwarded-Host`, which the front door writes itself, and writes `X-Forwarded-Proto`.
//!
//! All recipes wait up to an hour, for a slow answer as for a silent stream.
//!
//! gRPC passes HAProxy, which has a backend for it that speaks HTTP/2 to the front doors, and
//! Envoy, which speaks the client's version of HTTP.
//!
//! A balancer may set a cookie of its own instead ([`Affinity::Own`]): the mesh moves a session to
//! the peer where its client keeps arriving.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use clap::ValueEnum;
use warmhop::READY_PATH;
use warmhop::status::Status;

use crate::operate::client::front_door;

/// A load balancer for which there is a recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Balancer {
    /// HAProxy 2.4 or later.
    Haproxy,
    /// nginx 1.11 or later, the open-source one.
    Nginx,
    /// Apache httpd 2.4.47 or later.
    Apache,
    /// Envoy, configuration API v3.
    Envoy,
}

/// Whose cookie a balancer follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Affinity {
    /// The mesh's, which names the peer that the client should come back to.
    Mesh,
    /// One that the balancer sets: the session comes to the peer that it chose.
    Own,
}

/// How many connections, requests and retries Envoy may have under way in a cluster: as many as a
/// peer accepts. Its defaults are 1024, and 3 retries, so that the fourth client to find a peer
/// gone would get an error.
const ENVOY_AT_ONCE: u32 = 16 * 1024;

/// The name of the group of all servers.
const ANY: &str = "warmhop_any";

/// The options of a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// The balancer.
    pub balancer: Balancer,
    /// Whose cookie it follows.
    pub affinity: Affinity,
    /// Where it listens for clients.
    pub listen: SocketAddr,
}

/// A peer as a load balancer sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Backend {
    /// The peer's name.
    name: String,
    /// How the cookie ends: with the name or an alias.
    route: String,
    host: String,
    port: u16,
}

impl Backend {
    fn addr(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// The name of the group of servers in which this one is the first. No peer's name makes it
    /// that of all ([`ANY`]). Names that differ only in case, which nginx considers equal, are
    /// numbered.
    fn group(&self, backends: &[Self]) -> String {
        let alike = |other: &&Self| other.name.eq_ignore_ascii_case(&self.name);
        match backends.iter().take_while(|other| *other != self).filter(alike).count() {
            0 => format!("warmhop_peer_{}", self.name),
            before => format!("warmhop_peer{}_{}", before + 1, self.name),
        }
    }
}

/// The configuration for the mesh that `status` describes.
///
/// # Errors
/// If no peer has a front door that could be named.
pub fn recipe(wanted: Wanted, status: &Status) -> Result<String, String> {
    let backends = backends(status);
    if backends.is_empty() {
        return Err("no peer of this mesh has a front door; set [http] listen".into());
    }
    // The cookie's name goes into a configuration file, as the names of peers do.
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    let cookie = match status.cookie.as_str() {
        "" => "warmhop",
        name if name.bytes().all(is_plain) => name,
        name => return Err(format!("the mesh's cookie is called {name:?}, which fits no recipe")),
    };
    let mut text = String::new();
    let names: Vec<&str> = backends.iter().map(|backend| backend.name.as_str()).collect();
    let _ = writeln!(text, "# The mesh as {} sees it: {}.", names[0], names.join(", "));
    text.push_str("# A peer that joins later has to be added; print this again.\n");
    text.push_str("# Name this balancer in [http] trusted_proxies of every peer, so that apps learn who their clients are.\n");
    text.push_str("# Front doors with TLS: docs/load-balancers.md says what to change below.\n");
    for host in ["0.0.0.0", "[::]"] {
        if backends.iter().any(|backend| backend.host == host) {
            let _ = writeln!(text, "# Replace {host} by the address that reaches that peer.");
        }
    }
    match wanted.balancer {
        Balancer::Haproxy => haproxy(wanted, cookie, &backends, &mut text),
        Balancer::Nginx => nginx(wanted, cookie, &backends, &mut text),
        Balancer::Apache => apache(wanted, cookie, &backends, &mut text),
        Balancer::Envoy => envoy(wanted, cookie, &backends, &mut text),
    }
    Ok(text)
}

/// Every peer with a front door, the one that was asked first. A peer that is gone is kept: the
/// balancer's own checks find out when it is back.
fn backends(status: &Status) -> Vec<Backend> {
    let this = &status.peer;
    let this = this.http.first().map(|door| (&this.name, &this.route, door, &this.mesh));
    let others = (status.peers.iter())
        .filter_map(|peer| Some((&peer.name, &peer.route, peer.http.as_ref()?, &peer.mesh)));
    this.into_iter()
        .chain(others)
        .filter_map(|(name, route, door, mesh)| {
            // All of these go into a configuration file, so they are checked.
            let name = warmhop::ids::PeerId::new(name).ok()?.to_string();
            let route = if route.is_empty() { &name } else { route };
            let route = warmhop::ids::PeerId::new(route).ok()?.to_string();
            let door = front_door(door)?;
            let host = reached_at(door.host(), mesh).unwrap_or_else(|| door.host().into());
            let host = Some(host).filter(|host| is_host(host))?;
            Some(Backend { name, route, host, port: door.port_u16()? })
        })
        .collect()
}

/// Whether a configuration file can contain it: an address, or a DNS name.
fn is_host(host: &str) -> bool {
    let is_ipv6 = |inner: &str| inner.parse::<std::net::Ipv6Addr>().is_ok();
    let in_brackets = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_name = |host: &str| {
        !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
    };
    in_brackets.map_or_else(|| is_name(host), is_ipv6)
}

/// The host of a front door that listens on every address of its machine: the one at which other
/// peers reach its mesh port. A front door on every IPv4 address listens on no IPv6 address.
fn reached_at(host: &str, mesh: &str) -> Option<String> {
    let listens: IpAddr = host.trim_matches(['[', ']']).parse().ok()?;
    let mesh = mesh.parse::<SocketAddr>().ok()?.ip();
    let on_all = listens.is_unspecified() && (listens.is_ipv6() || mesh.is_ipv4());
    if !on_all || mesh.is_unspecified() {
        return None;
    }
    Some(if mesh.is_ipv6() { format!("[{mesh}]") } else { mesh.to_string() })
}

/// A pattern, for POSIX, Perl and RE2 alike, of `Cookie` fields whose first cookie called `cookie`
/// ends in a dot and `route`. Only the first belongs to the requested app: others of the name
/// belong to apps whose paths are above its own (RFC 6265 section 5.4).
fn first_cookie(cookie: &str, route: &str) -> String {
    // Any other pair deviates from the letters of `cookie=` at some place, or ends there.
    let begins = format!("{cookie}=");
    let other = |at: usize| {
        let (same, next) = (&begins[..at], &begins[at..=at]);
        let space = if at == 0 { " " } else { "" };
        format!("{same}([^{next};{space}][^;]*)?")
    };
    let others: Vec<String> = (0..begins.len()).map(other).collect();
    format!("^( *({});)* *{begins}[^;]*[.]{route} *(;.*)?$", others.join("|"))
}

fn haproxy(wanted: Wanted, cookie: &str, backends: &[Backend], text: &mut String) {
    let _ = write!(
        text,
        "
defaults
    mode http
    timeout connect 1s
    timeout http-request 10s
    timeout client 1h
    timeout server 1h
    timeout tunnel 1h
    retries 3
    option redispatch 1

frontend warmhop
    bind {}
    option forwardfor
    http-request del-header Forwarded
    http-request del-header X-Forwarded-Host
    http-request set-header X-Forwarded-Proto %[ssl_fc,iif(https,http)]
    use_backend warmhop_grpc if {{ req.hdr(content-type) -m beg application/grpc }}
    default_backend warmhop

backend warmhop
    balance leastconn
    option httpchk
    http-check send meth GET uri {READY_PATH}
    http-check expect status 200
    default-server check inter 500ms fall 1 rise 1
",
        wanted.listen
    );
    let own = wanted.affinity == Affinity::Own;
    if own {
        text.push_str("    cookie warmhop_lb insert indirect nocache httponly\n");
    }
    let mut follow = String::new();
    for Backend { name, route, .. } in backends.iter().filter(|_| !own) {
        let pattern = first_cookie(cookie, route);
        let _ =
            writeln!(follow, "    use-server {name} if {{ req.hdr(cookie) -m reg '{pattern}' }}");
    }
    text.push_str(&follow);
    for backend in backends {
        let cookie = if own { format!(" cookie {}", backend.route) } else { String::new() };
        let _ = writeln!(text, "    server {} {}{cookie}", backend.name, backend.addr());
    }
    // A backend of their own, since a front door answers `Expect: 100-continue` only over HTTP/1.1.
    text.push_str("\nbackend warmhop_grpc\n    balance leastconn\n    default-server proto h2\n");
    text.push_str(&follow);
    for backend in backends {
        let (name, addr) = (&backend.name, backend.addr());
        let _ = writeln!(text, "    server {name} {addr} track warmhop/{name}");
    }
}

fn nginx(wanted: Wanted, cookie: &str, backends: &[Backend], text: &mut String) {
    let _ =
        writeln!(text, "# It belongs into the http block.\n\nupstream {ANY} {{\n    least_conn;");
    for backend in backends {
        let _ = writeln!(text, "    server {} max_fails=1 fail_timeout=2s;", backend.addr());
    }
    text.push_str("}\n");
    for chosen in backends {
        let _ = writeln!(text, "\nupstream {} {{", chosen.group(backends));
        let _ = writeln!(text, "    server {} max_fails=1 fail_timeout=2s;", chosen.addr());
        for other in backends.iter().filter(|other| *other != chosen) {
            let _ = writeln!(text, "    server {} backup;", other.addr());
        }
        text.push_str("}\n");
    }
    let own = wanted.affinity == Affinity::Own;
    // The name of an nginx variable cannot have a hyphen.
    let whole = !own && cookie.contains('-');
    let read = if whole {
        "$http_cookie".into()
    } else {
        format!("$cookie_{}", if own { "warmhop_lb" } else { cookie })
    };
    let _ = writeln!(text, "\nmap {read} $warmhop_upstream {{\n    default {ANY};");
    // Only patterns are compared with regard to case; a plain word may also be one of the map's own
    // keywords, such as `include`.
    let before = if own { "^" } else { "\\." };
    for backend in backends {
        let group = backend.group(backends);
        let pattern = match whole {
            true => first_cookie(cookie, &backend.route),
            false => format!("{before}{}$", backend.route),
        };
        let _ = writeln!(text, "    \"~{pattern}\" {group};");
    }
    text.push_str("}\n");
    if own {
        nginx_own_cookie(backends, text);
    }
    nginx_server(wanted, text);
}

/// Sets the balancer's own cookie to the peer that answered.
fn nginx_own_cookie(backends: &[Backend], text: &mut String) {
    // If several were tried, the last one answered.
    text.push_str("\nmap $upstream_addr $warmhop_answered {\n");
    for backend in backends {
        let addr = backend.addr().replace('.', "\\.").replace('[', "\\[").replace(']', "\\]");
        let _ = writeln!(text, "    \"~(^|[ ,]){addr}$\" {};", backend.route);
    }
    // Only a client with another cookie, or none, gets one: an empty field is not added.
    text.push_str(
        "}

map \"$cookie_warmhop_lb:$warmhop_answered\" $warmhop_set_cookie {
    default \"warmhop_lb=$warmhop_answered; Path=/; HttpOnly; SameSite=Lax\";
    \"~:$\" \"\";
    \"~^(.+):\\1$\" \"\";
}

map $warmhop_set_cookie $warmhop_set_cache {
    default private;
    \"\" \"\";
}
",
    );
}

fn nginx_server(wanted: Wanted, text: &mut String) {
    let _ = write!(
        text,
        "
map $http_upgrade $warmhop_connection {{
    default upgrade;
    \"\" \"\";
}}

server {{
    listen {};
    location / {{
        proxy_pass http://$warmhop_upstream;
        proxy_connect_timeout 1s;
        proxy_http_version 1.1;
        proxy_set_header Host $http_host;
        proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Connection $warmhop_connection;
        proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        proxy_set_header X-Forwarded-Proto $scheme;
        proxy_set_header X-Forwarded-Host $http_host;
        proxy_set_header Forwarded \"\";
        proxy_buffering off;
        proxy_request_buffering off;
        client_max_body_size 0;
        proxy_read_timeout 1h;
        proxy_send_timeout 1h;
",
        wanted.listen
    );
    if wanted.affinity == Affinity::Own {
        text.push_str("        add_header Set-Cookie $warmhop_set_cookie always;\n");
        text.push_str("        add_header Cache-Control $warmhop_set_cache always;\n");
    }
    text.push_str("    }\n}\n");
}

fn apache(wanted: Wanted, cookie: &str, backends: &[Backend], text: &mut String) {
    let own = wanted.affinity == Affinity::Own;
    let _ = writeln!(
        text,
        "# It belongs into the virtual host that listens on {}, and needs mod_proxy,\n\
         # mod_proxy_http, mod_proxy_balancer, mod_proxy_hcheck, mod_watchdog, mod_slotmem_shm,\n\
         # mod_lbmethod_byrequests and mod_headers.\n\
         \n\
         <Proxy \"balancer://warmhop\">",
        wanted.listen,
    );
    for backend in backends {
        let _ = writeln!(
            text,
            "    BalancerMember \"http://{}\" route={} retry=2 connectiontimeout=1 upgrade=websocket \\\n        \
             hcmethod=GET hcuri={READY_PATH} hcinterval=2 hcpasses=1 hcfails=1",
            backend.addr(),
            backend.route
        );
    }
    let cookie = if own { "warmhop_lb" } else { cookie };
    let _ = writeln!(text, "    ProxySet stickysession={cookie}\n</Proxy>");
    if own {
        text.push_str(
            "Header add Set-Cookie \"warmhop_lb=.%{BALANCER_WORKER_ROUTE}e; Path=/; HttpOnly; SameSite=Lax\" env=BALANCER_ROUTE_CHANGED\n\
             Header merge Cache-Control private env=BALANCER_ROUTE_CHANGED\n",
        );
    }
    // Paths belong to the app: without these, Apache refuses some and rewrites others.
    text.push_str(
        "RequestHeader unset Forwarded\n\
         RequestHeader unset X-Forwarded-Host\n\
         RequestHeader set X-Forwarded-Proto expr=%{REQUEST_SCHEME}\n\
         AllowEncodedSlashes NoDecode\n\
         MergeSlashes Off\n\
         ProxyTimeout 3600\n\
         ProxyPreserveHost On\n\
         ProxyPass        \"/\" \"balancer://warmhop/\" nocanon\n\
         ProxyPassReverse \"/\" \"balancer://warmhop/\"\n",
    );
}

/// Envoy has a cluster for each peer in which the others have the second priority, and the cookie's
/// ending chooses the cluster. With its own cookie it needs only the cluster of all.
///
/// By default, Envoy checks the health of a cluster without requests once a minute: too seldom to
/// find a peer gone before the first request does.
fn envoy(wanted: Wanted, cookie: &str, backends: &[Backend], text: &mut String) {
    let _ = write!(
        text,
        "
static_resources:
  listeners:
  - name: warmhop
    address: {{ socket_address: {{ address: \"{}\", port_value: {} }} }}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: warmhop
          use_remote_address: true
          preserve_external_request_id: true
          stream_idle_timeout: 3600s
          upgrade_configs: [{{ upgrade_type: websocket }}]
          http_filters:
",
        wanted.listen.ip(),
        wanted.listen.port(),
    );
    let own = wanted.affinity == Affinity::Own;
    if own {
        text.push_str(
            "          - name: envoy.filters.http.stateful_session
            typed_config:
              \"@type\": type.googleapis.com/envoy.extensions.filters.http.stateful_session.v3.StatefulSession
              session_state:
                name: envoy.http.stateful_session.cookie
                typed_config:
                  \"@type\": type.googleapis.com/envoy.extensions.http.stateful_session.cookie.v3.CookieBasedSessionState
                  cookie: { name: warmhop_lb, path: / }
",
        );
    }
    let chosen = if own { &[] } else { backends };
    envoy_router(cookie, chosen, backends, text);
    text.push_str("  clusters:\n");
    envoy_cluster(ANY, None, backends, text);
    for chosen in chosen {
        envoy_cluster(&chosen.group(backends), Some(chosen), backends, text);
    }
}

/// Routes to the cluster of each of `chosen` by the cookie's ending, and to the one of all.
fn envoy_router(cookie: &str, chosen: &[Backend], backends: &[Backend], text: &mut String) {
    // A request that no peer has accepted can go to another.
    text.push_str(
        "          - name: envoy.filters.http.router
            typed_config:
              \"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
          route_config:
            request_headers_to_remove: [forwarded, x-forwarded-host]
            virtual_hosts:
            - name: warmhop
              domains: [\"*\"]
              retry_policy:
                retry_on: \"connect-failure,refused-stream\"
                num_retries: 3
                host_selection_retry_max_attempts: 5
                retry_host_predicate:
                - name: envoy.retry_host_predicates.previous_hosts
                  typed_config:
                    \"@type\": type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate
                retry_priority:
                  name: envoy.retry_priorities.previous_priorities
                  typed_config:
                    \"@type\": type.googleapis.com/envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig
                    update_frequency: 1
              routes:
",
    );
    for backend in chosen {
        let (route, group) = (&backend.route, backend.group(backends));
        let _ = write!(
            text,
            "              - match:
                  prefix: /
                  headers:
                  - name: cookie
                    string_match: {{ safe_regex: {{ regex: '(.*;\\s*)?{cookie}=[^;]*\\.{route}(;.*)?' }} }}
                route: {{ cluster: {group}, timeout: 0s }}
"
        );
    }
    let _ = write!(
        text,
        "              - match: {{ prefix: / }}
                route: {{ cluster: {ANY}, timeout: 0s }}
"
    );
}

fn envoy_cluster(name: &str, chosen: Option<&Backend>, backends: &[Backend], text: &mut String) {
    let _ = write!(
        text,
        "  - name: {name}
    type: STRICT_DNS
    connect_timeout: 1s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        use_downstream_protocol_config: {{ http_protocol_options: {{}}, http2_protocol_options: {{}} }}
    lb_policy: LEAST_REQUEST
    common_lb_config: {{ healthy_panic_threshold: {{ value: 0 }} }}
    circuit_breakers:
      thresholds:
      - {{ max_connections: {ENVOY_AT_ONCE}, max_pending_requests: {ENVOY_AT_ONCE}, max_requests: {ENVOY_AT_ONCE}, max_retries: {ENVOY_AT_ONCE} }}
    health_checks:
    - {{ timeout: 1s, interval: 0.5s, no_traffic_interval: 0.5s, unhealthy_threshold: 1, healthy_threshold: 1, http_health_check: {{ path: {READY_PATH} }} }}
    load_assignment:
      cluster_name: {name}
      endpoints:
"
    );
    for backend in backends {
        let priority = u8::from(chosen.is_some_and(|chosen| chosen != backend));
        let host = backend.host.trim_start_matches('[').trim_end_matches(']');
        let _ = write!(
            text,
            "      - priority: {priority}
        lb_endpoints:
        - endpoint: {{ address: {{ socket_address: {{ address: \"{host}\", port_value: {} }} }} }}
",
            backend.port
        );
    }
}

#[cfg(test)]
mod tests;
