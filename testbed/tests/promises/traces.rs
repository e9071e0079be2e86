//! Traces that go through a mesh: a collector hears of every step, and each is part of the one
//! before it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use http::Method;
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::net::TcpListener;
use warmhop_testbed::client::Client;

use crate::support::{QUICK, World, never_on, shop, until};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CLIENT_SPAN: &str = "00f067aa0ba902b7";

/// The spans that came, each with the peer that sent it.
type Received = Arc<Mutex<Vec<(String, Span)>>>;

/// Listens as an OpenTelemetry collector does.
async fn collector() -> (SocketAddr, Received) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let received = Received::default();
    let spans = Arc::clone(&received);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let spans = Arc::clone(&spans);
            let service = hyper::service::service_fn(move |request: http::Request<Incoming>| {
                let spans = Arc::clone(&spans);
                async move {
                    assert_eq!(request.uri().path(), "/v1/traces");
                    assert_eq!(request.headers()["content-type"], "application/json");
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    let export: ExportTraceServiceRequest = serde_json::from_slice(&body).unwrap();
                    for resource in export.resource_spans {
                        let attributes = resource.resource.unwrap().attributes;
                        let peer = text_of(&attributes, "service.instance.id");
                        let scopes = resource.scope_spans.into_iter();
                        let fresh = scopes.flat_map(|scope| scope.spans);
                        spans.lock().unwrap().extend(fresh.map(|span| (peer.clone(), span)));
                    }
                    Ok::<_, hyper::Error>(http::Response::new(Empty::<Bytes>::new()))
                }
            });
            let connection = hyper::server::conn::http1::Builder::new();
            tokio::spawn(connection.serve_connection(TokioIo::new(stream), service));
        }
    });
    (addr, received)
}

fn text_of(attributes: &[opentelemetry_proto::tonic::common::v1::KeyValue], key: &str) -> String {
    let found = attributes.iter().find(|attribute| attribute.key == key);
    match found.and_then(|attribute| attribute.value.clone()?.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        other => panic!("{key} is {other:?} in {attributes:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn traced_world(collector: SocketAddr) -> World {
    let mut world = World::prepare(2, vec![shop(QUICK, "")], "");
    let endpoint = format!("http://{collector}");
    for index in 0..2 {
        world.mesh.reconfigure(index, |config| never_on(1)(index, config)).unwrap();
        let env = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str())];
        world.mesh.start_with(index, &env).unwrap();
    }
    world.mesh.formed().await.unwrap();
    world.warm(0).await;
    world
}

#[tokio::test]
async fn one_trace_spans_client_entry_peer_hop_and_app() {
    let (addr, received) = collector().await;
    let world = traced_world(addr).await;
    let mut client = Client::new();
    // The app tells the fields that reached it.
    let call = client.call(Method::GET, "/headers?secret=1");
    let call = call.header("traceparent", format!("00-{TRACE}-{CLIENT_SPAN}-01"));
    let reply = call.header("tracestate", "vendor=x").send(world.http(1)).await.unwrap();
    let reply = reply.ok().unwrap();
    assert!(reply.hopped());
    let fields: Vec<(String, String)> = serde_json::from_slice(&reply.body).unwrap();
    let at_app: BTreeMap<_, _> = fields.into_iter().collect();
    assert_eq!(at_app["tracestate"], "vendor=x");
    let parts: Vec<&str> = at_app["traceparent"].split('-').collect();
    let [_, TRACE, app_parent, "01"] = parts[..] else { panic!("{at_app:?}") };

    let spans = until("every span has come", async || {
        let received = received.lock().unwrap();
        let of_trace = received.iter().filter(|(_, span)| hex(&span.trace_id) == TRACE);
        let of_trace: Vec<_> = of_trace.cloned().collect();
        (of_trace.len() >= 4).then_some(of_trace)
    })
    .await;
    // From the client to the app, each the parent of the next.
    let mut parent = CLIENT_SPAN.to_owned();
    let mut way = Vec::new();
    while let Some((peer, span)) =
        spans.iter().find(|(_, span)| hex(&span.parent_span_id) == parent)
    {
        parent = hex(&span.span_id);
        way.push((peer.as_str(), span.kind, span.name.as_str()));
        assert_eq!(span.trace_state, "vendor=x");
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano);
        assert_eq!(text_of(&span.attributes, "http.request.method"), "GET");
        assert_eq!(text_of(&span.attributes, "http.response.status_code"), "200");
        assert!(!format!("{span:?}").contains("secret"), "the query is not recorded");
    }
    let (server, asked) = (2, 3);
    assert_eq!(
        way,
        [
            (world.name(1), server, "GET"),
            (world.name(1), asked, "hop"),
            (world.name(0), server, "hop received"),
            (world.name(0), asked, "GET"),
        ]
    );
    assert_eq!(parent, app_parent, "the app's own spans go on from there");
    assert_eq!(spans.len(), 4);
    let entry = &spans.iter().find(|(_, span)| hex(&span.parent_span_id) == CLIENT_SPAN).unwrap().1;
    assert!(
        entry.events.iter().any(|event| event.name == "hop"),
        "the reason is recorded: {entry:?}"
    );
    assert_eq!(text_of(&entry.attributes, "warmhop.way"), "hop");
    assert_eq!(text_of(&entry.attributes, "warmhop.request_id"), reply.request_id().unwrap());

    // What the client does not want traced is not, and goes on as it came.
    let unsampled = format!("00-{}-{CLIENT_SPAN}-00", "b".repeat(32));
    let call = client.call(Method::GET, "/headers").header("traceparent", &unsampled);
    let reply = call.send(world.http(1)).await.unwrap().ok().unwrap();
    assert!(reply.text().contains(&unsampled), "{}", reply.text());
    // A request without a trace begins one; what comes later shows that all before has come.
    client.get(world.http(1), "/whoami").await.unwrap().ok().unwrap();
    until("the next trace has come", async || {
        let received = received.lock().unwrap();
        let root = |(_, span): &&(String, Span)| span.parent_span_id.is_empty();
        received.iter().find(root).map(|_| ())
    })
    .await;
    let all = received.lock().unwrap();
    assert!(all.iter().all(|(_, span)| hex(&span.trace_id) != "b".repeat(32)));
}

#[tokio::test]
async fn a_leaving_peer_sends_its_last_spans_before_it_ends() {
    let (addr, received) = collector().await;
    let mut world = traced_world(addr).await;
    Client::new().get(world.http(0), "/whoami").await.unwrap().ok().unwrap();
    assert!(world.mesh.stop(0).await.unwrap().success());
    let received = received.lock().unwrap();
    let of_peer = received.iter().filter(|(peer, _)| peer == world.name(0)).count();
    assert_eq!(of_peer, 2, "the request and what the app was asked: {received:?}");
}
