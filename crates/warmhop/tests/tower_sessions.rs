//! tower-sessions with its sessions in the mesh: the store by itself, and an axum app on three
//! peers.
#![cfg(feature = "tower-sessions")]
#![allow(missing_docs, reason = "a test crate")]
#![allow(clippy::unwrap_used, reason = "tests: a failed step is a failed test")]

mod bed;

use std::time::{Duration, SystemTime};

use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bed::{PATIENCE, eventually, peer};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use tower::ServiceExt;
use tower_sessions::session::{Error, Id, Record};
use tower_sessions::session_store::Error as StoreError;
use tower_sessions::{Session, SessionManagerLayer, SessionStore};
use warmhop::identity::Authority;
use warmhop::ids::AppName;
use warmhop::session_store::Store;
use warmhop::{Expires, Mesh, When};

/// Peers that all keep the same registers and know each other.
async fn peers(names: &[&str]) -> Vec<Mesh> {
    let authority = Authority::generate("test").unwrap();
    let mut peers: Vec<Mesh> = Vec::new();
    for name in names {
        let identity = authority.issue(&peer(name)).unwrap();
        let mut builder = Mesh::builder(identity).registers(logins());
        for other in &peers {
            builder = builder.seed(other.mesh_addr().to_string());
        }
        peers.push(builder.start().await.unwrap());
    }
    eventually("every peer sees every other", || {
        peers.iter().all(|mesh| {
            let seen = mesh.status().peers;
            seen.iter().filter(|p| p.alive && p.rtt_us.is_some()).count() == names.len() - 1
        })
    })
    .await;
    peers
}

fn logins() -> AppName {
    AppName::new("logins").unwrap()
}

fn store(mesh: &Mesh) -> Store {
    Store::new(mesh.registers(&logins()).unwrap())
}

fn record(name: &str, lives: Duration) -> Record {
    let data = [("name".to_owned(), name.into())].into();
    Record { id: Id::default(), data, expiry_date: (SystemTime::now() + lives).into() }
}

const HOUR: Duration = Duration::from_secs(3600);

fn name_in(record: Option<Record>) -> Option<String> {
    Some(record?.data["name"].as_str()?.to_owned())
}

#[tokio::test]
async fn a_record_is_made_read_changed_and_ended_at_different_peers() {
    let peers = peers(&["one", "two", "three"]).await;
    let [one, two, three] = [0, 1, 2].map(|at| store(&peers[at]));
    let mut ada = record("Ada", HOUR);
    one.create(&mut ada).await.unwrap();
    let read = two.load(&ada.id).await.unwrap().unwrap();
    assert_eq!((read.id, &read.data), (ada.id, &ada.data));
    let off = (read.expiry_date - ada.expiry_date).abs();
    assert!(off < Duration::from_millis(2), "it ends when it was to: {off}");

    ada.data.insert("name".to_owned(), "Lovelace".into());
    three.save(&ada).await.unwrap();
    assert_eq!(name_in(one.load(&ada.id).await.unwrap()).unwrap(), "Lovelace");
    two.delete(&ada.id).await.unwrap();
    assert_eq!(three.load(&ada.id).await.unwrap(), None);
    two.delete(&ada.id).await.unwrap();
    for mesh in &peers {
        mesh.vanish().await;
    }
}

#[tokio::test]
async fn a_new_session_never_takes_an_id_that_is_in_use() {
    let peers = peers(&["one", "two"]).await;
    let (one, two) = (store(&peers[0]), store(&peers[1]));
    let mut ada = record("Ada", HOUR);
    one.create(&mut ada).await.unwrap();
    let mut eve = record("Eve", HOUR);
    eve.id = ada.id;
    two.create(&mut eve).await.unwrap();
    assert_ne!(eve.id, ada.id);
    assert_eq!(name_in(two.load(&ada.id).await.unwrap()).unwrap(), "Ada");
    assert_eq!(name_in(one.load(&eve.id).await.unwrap()).unwrap(), "Eve");
    for mesh in &peers {
        mesh.vanish().await;
    }
}

#[tokio::test]
async fn a_session_that_was_ended_is_not_brought_back_by_a_late_save() {
    let peers = peers(&["one"]).await;
    let one = store(&peers[0]);
    let mut ada = record("Ada", HOUR);
    one.create(&mut ada).await.unwrap();
    one.delete(&ada.id).await.unwrap();
    let refused = one.save(&ada).await.unwrap_err();
    assert!(matches!(refused, StoreError::Backend(_)), "{refused}");
    assert_eq!(one.load(&ada.id).await.unwrap(), None);
    peers[0].vanish().await;
}

#[tokio::test]
async fn a_session_ends_by_its_own_time_and_a_save_moves_that() {
    let peers = peers(&["one"]).await;
    let one = store(&peers[0]);
    let mut long = record("long", HOUR);
    let mut short = record("short", HOUR);
    one.create(&mut long).await.unwrap();
    one.create(&mut short).await.unwrap();
    long.expiry_date = (SystemTime::now() + 2 * HOUR).into();
    one.save(&long).await.unwrap();
    short.expiry_date = (SystemTime::now() + Duration::from_secs(1)).into();
    one.save(&short).await.unwrap();
    let end = tokio::time::Instant::now() + PATIENCE;
    while one.load(&short.id).await.unwrap().is_some() {
        assert!(tokio::time::Instant::now() < end, "it never ended");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(SystemTime::now() >= SystemTime::from(short.expiry_date), "it ended too soon");
    assert!(one.save(&short).await.is_err());
    let left = one.load(&long.id).await.unwrap().unwrap();
    assert!(left.expiry_date > SystemTime::now() + HOUR);
    peers[0].vanish().await;
}

#[tokio::test]
async fn a_record_that_is_too_large_or_no_session_is_refused_as_such() {
    let peers = peers(&["one"]).await;
    let one = store(&peers[0]);
    let mut large = record(&"x".repeat(warmhop::VALUE_BYTES_MAX), HOUR);
    let refused = one.create(&mut large).await.unwrap_err();
    assert!(matches!(refused, StoreError::Encode(_)), "{refused}");

    let id = Id::default();
    let key = format!("tower-session:{id}");
    let registers = peers[0].registers(&logins()).unwrap();
    registers.put(key.as_bytes(), "secret", Expires::Default, When::Always).await.unwrap();
    let refused = one.load(&id).await.unwrap_err();
    assert!(matches!(refused, StoreError::Decode(_)), "{refused}");
    assert!(!refused.to_string().contains("secret"));
    peers[0].vanish().await;
}

struct Failed(Error);

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        (StatusCode::INTERNAL_SERVER_ERROR, self.0.to_string()).into_response()
    }
}

/// An ordinary app of tower-sessions: a log-in, which changes the session's id, a cart, a log-out.
fn app(mesh: &Mesh) -> Router {
    let login = async |session: Session, name: String| {
        session.cycle_id().await?;
        session.insert("name", name).await?;
        Ok::<_, Failed>(())
    };
    let add = async |session: Session, item: String| {
        let mut cart: Vec<String> = session.get("cart").await?.unwrap_or_default();
        cart.push(item);
        session.insert("cart", &cart).await?;
        Ok::<_, Failed>(cart.join(" "))
    };
    let show = async |session: Session| {
        let name: Option<String> = session.get("name").await?;
        let cart: Option<Vec<String>> = session.get("cart").await?;
        Ok::<_, Failed>(format!(
            "{}: {}",
            name.unwrap_or("nobody".into()),
            cart.unwrap_or_default().join(" ")
        ))
    };
    let logout = async |session: Session| Ok::<_, Failed>(session.flush().await?);
    Router::new()
        .route("/", get(show))
        .route("/add", post(add))
        .route("/login", post(login))
        .route("/logout", post(logout))
        .layer(SessionManagerLayer::new(store(mesh)))
}

/// A browser, as far as cookies go.
#[derive(Default, Clone)]
struct Browser {
    cookie: String,
}

impl Browser {
    async fn send(&mut self, app: &Router, request: Request<String>) -> (StatusCode, String) {
        let (mut parts, body) = request.into_parts();
        parts.headers.insert("cookie", self.cookie.parse().unwrap());
        let request = Request::from_parts(parts, axum::body::Body::from(body));
        let answering = app.clone().oneshot(request);
        let response = tokio::time::timeout(PATIENCE, answering).await.unwrap().unwrap();
        if let Some(set) = response.headers().get("set-cookie") {
            self.cookie = set.to_str().unwrap().split(';').next().unwrap().to_owned();
        }
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn get(&mut self, app: &Router) -> String {
        let (status, text) = self.send(app, Request::get("/").body(String::new()).unwrap()).await;
        assert_eq!(status, StatusCode::OK, "{text}");
        text
    }

    async fn post(&mut self, app: &Router, path: &str, body: &str) -> String {
        let request = Request::post(path).body(body.to_owned()).unwrap();
        let (status, text) = self.send(app, request).await;
        assert_eq!(status, StatusCode::OK, "{text}");
        text
    }
}

#[tokio::test]
async fn an_axum_app_on_three_peers_keeps_its_sessions_when_the_one_that_made_them_dies() {
    let peers = peers(&["one", "two", "three"]).await;
    let [one, two, three] = [0, 1, 2].map(|at| app(&peers[at]));
    let mut ada = Browser::default();
    ada.post(&one, "/add", "Emma").await;
    let before = ada.clone();
    ada.post(&one, "/login", "Ada").await;
    assert_ne!(ada.cookie, before.cookie, "a log-in changes the session's id");
    assert_eq!(ada.get(&two).await, "Ada: Emma");
    assert_eq!(before.clone().get(&two).await, "nobody: ", "the former id is worth nothing");
    assert_eq!(ada.post(&one, "/add", "Ulysses").await, "Emma Ulysses");

    peers[0].vanish().await;
    assert_eq!(ada.get(&three).await, "Ada: Emma Ulysses");
    assert_eq!(ada.post(&two, "/add", "Solaris").await, "Emma Ulysses Solaris");

    let stolen = ada.clone();
    ada.post(&three, "/logout", "").await;
    assert_eq!(stolen.clone().get(&two).await, "nobody: ");
    for mesh in &peers[1..] {
        mesh.vanish().await;
    }
}
