//! The services as a tonic client sees them.

use super::proto::auth::auth_client::AuthClient;
use super::proto::auth::{LoginRequest, MeRequest, RegisterRequest};
use super::proto::documents::documents_client::DocumentsClient;
use super::proto::documents::edit_request::Edit;
use super::proto::documents::{
    CreateDocumentRequest, EditRequest, GetDocumentRequest, UploadChunk, WatchDocumentsRequest,
};
use crate::demo::{Demo, SECRET};
use crate::grpc::wire::rpc;
use futures_util::{StreamExt as _, stream};
use prost::Message as _;
use tonic::transport::Channel;
use tonic::{Code, Request};

async fn channel(demo: &Demo) -> Channel {
    Channel::from_shared(demo.url()).unwrap().connect().await.unwrap()
}

fn by<T>(user: &'static str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("x-user-id", user.parse().unwrap());
    request
}

#[tokio::test]
async fn all_four_kinds_of_method_answer() {
    let demo = Demo::start().await.unwrap();
    let mut documents = DocumentsClient::new(channel(&demo).await);
    let create = CreateDocumentRequest { title: "One".into(), content: "Text".into(), ..Default::default() };
    let made = documents.create(by("ann", create)).await.unwrap().into_inner();
    assert_eq!((made.size, made.revision), (4, 1));

    let watch = WatchDocumentsRequest { existing: true, max_events: 2 };
    let mut events = documents.watch(by("ann", watch)).await.unwrap().into_inner();
    let chunks = [("Two", &b"caf\xc3"[..]), ("", b"\xa9")];
    let chunks = chunks.map(|(title, data)| UploadChunk { title: title.into(), data: data.into() });
    let uploaded = documents.upload(by("ann", stream::iter(chunks))).await.unwrap().into_inner();
    assert_eq!(uploaded.content, "café");
    let told: Vec<_> = events.by_ref().map(|event| event.unwrap().document.unwrap().title).collect().await;
    assert_eq!(told, ["One", "Two"]);

    let edits =
        ["!", "?"].map(|text| EditRequest { id: made.id.clone(), edit: Some(Edit::Append(text.into())) });
    let answers = documents.edit(by("ann", stream::iter(edits))).await.unwrap().into_inner();
    let contents: Vec<_> = answers.map(|answer| answer.unwrap().content).collect().await;
    assert_eq!(contents, ["Text!", "Text!?"]);

    let theirs = documents.get(by("bob", GetDocumentRequest { id: made.id })).await.unwrap_err();
    assert_eq!(theirs.code(), Code::NotFound);
    let details = rpc::Status::decode(theirs.details()).unwrap().details;
    assert!(details[1].type_url.ends_with("/google.rpc.ResourceInfo"), "{details:?}");
    let nobodys = documents.get(GetDocumentRequest::default()).await.unwrap_err();
    assert_eq!(nobodys.code(), Code::Unauthenticated);
}

#[test]
fn deadlines_are_read() {
    let read = |text: &'static str| {
        let headers = [("grpc-timeout".parse().unwrap(), text.parse().unwrap())];
        super::timeout(&headers.into_iter().collect()).map(|timeout| timeout.as_micros())
    };
    let all = ["1H", "2M", "3S", "50m", "7u", "9000n", "", "5", "m", "x5m"].map(read);
    let micros = [3_600_000_000, 120_000_000, 3_000_000, 50_000, 7, 9].map(Some);
    assert_eq!((&all[..6], &all[6..]), (&micros[..], &[None; 4][..]));
}

#[tokio::test]
async fn tokens_of_the_auth_service_are_what_the_gateway_expects() {
    let demo = Demo::start().await.unwrap();
    let mut auth = AuthClient::new(channel(&demo).await);
    let ann = RegisterRequest {
        username: "Ann".into(),
        email: "ann@example.com".into(),
        password: "Gateway1".into(),
    };
    let tokens = auth.register(ann.clone()).await.unwrap().into_inner();
    let user = tokens.user.unwrap();
    let (store, shared) = crate::tokens::testing::backends();
    let keys = crate::tokens::keys::Keys::new(SECRET.as_bytes(), &[]);
    let verifier = crate::tokens::Tokens::new(keys, store, shared, 10);
    let identity = verifier.verify(&tokens.access_token, std::time::SystemTime::now()).unwrap();
    assert_eq!((&*identity.user_id, &*identity.role), (&*user.id, "user"));

    assert_eq!(auth.register(ann).await.unwrap_err().code(), Code::AlreadyExists);
    let login = |password: &str| LoginRequest {
        username: "ANN".into(),
        password: password.into(),
        ..Default::default()
    };
    assert_eq!(auth.login(login("Wrong123")).await.unwrap_err().code(), Code::Unauthenticated);
    auth.login(login("Gateway1")).await.unwrap();
    let mut me = Request::new(MeRequest {});
    me.metadata_mut().insert("x-user-id", user.id.parse().unwrap());
    let me = auth.me(me).await.unwrap().into_inner();
    assert!(me.username == "Ann" && me.last_login_at.is_some());
}
