//! Requests that are in memory as a whole, and are lent.

use http::header::HeaderName;
use http::uri::PathAndQuery;

use super::*;

/// What the app gets of a request.
async fn described(request: Request<Incoming>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let fields = parts.headers.iter().map(|(name, value)| format!("{name}: {value:?}\n"));
    let fields = fields.collect::<String>();
    let body = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
    Response::new(Body::from(format!("{} {}\n{fields}\n{body}", parts.method, parts.uri)))
}

async fn text(response: Response<Body>) -> String {
    assert_eq!(response.status(), StatusCode::OK);
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

fn fields(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    let pair = |(name, value): &(&'static str, &'static str)| {
        (HeaderName::from_static(name), HeaderValue::from_static(value))
    };
    pairs.iter().map(pair).collect()
}

#[tokio::test]
async fn the_app_gets_a_lent_request_as_it_gets_any_other() {
    let mut service = server(described).await;
    let lends = service.lends().unwrap();
    for (method, target, said, body) in [
        (Method::GET, "/a?b", &[("host", "a"), ("x", "1"), ("x", "2")] as &[_], ""),
        (Method::POST, "/", &[("host", "a"), ("content-length", "4")], "body"),
        (Method::PUT, "/c", &[("host", "a")], "body"),
        (Method::DELETE, "/", &[("host", "a")], ""),
    ] {
        let (fields, body) = (fields(said), Bytes::from(body));
        let target: PathAndQuery = target.parse().unwrap();
        let mut request = Request::new(Body::from(body.clone()));
        *request.method_mut() = method.clone();
        *request.uri_mut() = Uri::from(target.clone());
        *request.headers_mut() = fields.clone();
        request.headers_mut().append("x-further", HeaderValue::from_static("3"));
        let sent = text(service.call(request).await.unwrap()).await;
        let mut lent = WholeRequest::new(&method, &target, &fields, &body);
        lent.further = Some((HeaderName::from_static("x-further"), HeaderValue::from_static("3")));
        assert!(lends.takes(&lent), "{said:?}");
        assert_eq!(text(lends.answer(lent).await.unwrap()).await, sent);
        assert!(sent.contains("x-further: \"3\""));
    }
}

#[tokio::test]
async fn only_what_goes_to_the_app_as_it_is_can_be_lent() {
    let (_listener, service) = listener().await;
    let lends = service.lends().unwrap();
    let target = PathAndQuery::from_static("/");
    let takes = |fields: &HeaderMap, body: &Bytes| {
        lends.takes(&WholeRequest::new(&Method::POST, &target, fields, body))
    };
    let body = Bytes::from("body");
    assert!(takes(&fields(&[("host", "a"), ("content-length", "4")]), &body));
    for said in [
        &[("x", "1")] as &[_],
        &[("host", "a"), ("content-length", "5")],
        &[("host", "a"), ("content-length", "+4")],
        &[("host", "a"), ("content-length", "04")],
        &[("host", "a"), ("content-length", "4"), ("content-length", "4")],
        &[("host", "a"), ("transfer-encoding", "chunked")],
        &[("host", "a"), ("te", "trailers")],
        &[("host", "a"), ("connection", "x")],
        &[("host", "a"), ("upgrade", "x")],
        &[("host", "a"), ("expect", "100-continue")],
    ] {
        assert!(!takes(&fields(said), &body), "{said:?}");
    }
    let long = Bytes::from(vec![0; 1 + WHOLE_BYTES_MAX as usize]);
    assert!(!takes(&fields(&[("host", "a")]), &long));
    let (_listener, service) = listener_of(Protocol::H2).await;
    assert!(service.lends().is_none());
}
