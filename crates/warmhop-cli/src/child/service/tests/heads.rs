//! How large the head of an answer may be.

use super::*;
use crate::child::STATE_BYTES_MAX;

/// Answers with a session of as many bytes as the path says.
async fn session(request: Request<Incoming>) -> Response<Body> {
    let bytes: usize = request.uri().path()[1..].parse().unwrap();
    let field = format!(":{}:", "QUFB".repeat(bytes / 3));
    Response::builder().header("warmhop-session", field).body(Body::from("ok")).unwrap()
}

#[tokio::test]
async fn the_largest_session_that_may_be_carried_fits_into_the_head_of_an_answer() {
    for mut service in [server(session).await, h2_server(session).await.0] {
        let response = service.call(get(&format!("/{STATE_BYTES_MAX}"))).await.unwrap();
        assert!(response.headers()["warmhop-session"].len() > STATE_BYTES_MAX);
    }
    let endless = get(&format!("/{}", 2 * STATE_BYTES_MAX));
    let error = server(session).await.call(endless).await.unwrap_err().to_string();
    assert!(error.contains("KiB"), "{error}");
}
