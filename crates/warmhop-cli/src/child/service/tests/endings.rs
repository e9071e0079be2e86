//! How an answer says that its connection ends.

use super::*;

#[tokio::test]
async fn a_refusal_that_ends_its_connection_says_so() {
    for (answer, closes) in [
        ("HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\nno", false),
        ("HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\nno", true),
        ("HTTP/1.1 400 Bad Request\r\n\r\nno", true),
        ("HTTP/1.0 400 Bad Request\r\ncontent-length: 2\r\n\r\nno", true),
        ("HTTP/1.0 400 Bad Request\r\n\r\nno", true),
        ("HTTP/1.0 200 OK\r\n\r\nno", false),
    ] {
        let (listener, service) = listener().await;
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        let request = Request::get("/").body(Body::empty()).unwrap();
        let response = service.clone().call(request).await.unwrap();
        let said = response.headers().get("connection").map(|value| value.as_bytes());
        assert_eq!(said == Some(b"close"), closes, "{answer:?}: {response:?}");
    }
}
