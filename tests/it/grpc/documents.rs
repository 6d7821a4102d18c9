//! The shipped documents service: by a tonic client, as JSON, and as an event stream, through one gateway.

use super::service::connection;
use crate::shipped::shipped;
use futures_util::{StreamExt as _, stream};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::{Code, Request};
use voicegate::demo::Demo;
use voicegate::demo::grpc::proto::documents::documents_client::DocumentsClient;
use voicegate::demo::grpc::proto::documents::{
    CreateDocumentRequest, EditRequest, GetDocumentRequest, UploadChunk, WatchDocumentsRequest,
    edit_request::Edit,
};

#[tokio::test]
async fn one_service_is_called_by_grpc_as_json_and_as_events() {
    let demo = Demo::start().await.unwrap();
    let gateway = shipped(&demo).await;
    let ann = r#"{"username": "ann", "email": "ann@example.com", "password": "Gateway1"}"#;
    let said = gateway.client.post("/api/v01/auth/register", ann).await.json();
    let bearer = format!("Bearer {}", said["access_token"].as_str().unwrap());
    let (connection, origin) = connection(gateway.client.address()).await;
    let mut client = DocumentsClient::with_origin(connection, origin);

    let nobody = client.get(GetDocumentRequest { id: "x".into() }).await.unwrap_err();
    assert_eq!(nobody.code(), Code::Unauthenticated);

    let title = "Notes".to_owned();
    let made = CreateDocumentRequest { title, content: "a".into(), ..Default::default() };
    let made = client.create(known(&bearer, made)).await.unwrap().into_inner();
    let watched = WatchDocumentsRequest { existing: true, max_events: 1 };
    let events: Vec<_> = client.watch(known(&bearer, watched)).await.unwrap().into_inner().collect().await;
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].as_ref().unwrap().document.as_ref().unwrap().id, made.id);
    let pieces = [("Large", ""), ("", "one "), ("", "two")]
        .map(|(title, data)| UploadChunk { title: title.into(), data: data.into() });
    let uploaded = client.upload(known(&bearer, stream::iter(pieces))).await.unwrap().into_inner();
    assert_eq!((uploaded.title.as_str(), uploaded.content.as_str()), ("Large", "one two"));

    let (edits, mut said) = mpsc::unbounded_channel();
    let edit = |id: &str, text: &str| EditRequest { id: id.into(), edit: Some(Edit::Append(text.into())) };
    edits.send(edit(&made.id, "b")).unwrap();
    let said = stream::poll_fn(move |cx| said.poll_recv(cx));
    let mut answers = client.edit(known(&bearer, said)).await.unwrap().into_inner();
    for (content, next) in [("ab", "c"), ("abc", "d")] {
        let answer = timeout(Duration::from_secs(10), answers.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(answer.content, content, "each is answered before the next is said");
        edits.send(edit("", next)).unwrap();
    }
    assert_eq!(answers.next().await.unwrap().unwrap().content, "abcd");
    drop(edits);
    assert!(answers.next().await.is_none());

    let headers = [("authorization", bearer.as_str())];
    let path = format!("/api/v01/documents/{}", made.id);
    let read = gateway.client.send("GET", &path, &headers, "").await;
    assert_eq!((read.status.as_u16(), read.json()["content"].as_str()), (200, Some("abcd")));
    let path = "/api/v01/documents/watch?existing=true&max_events=2";
    let (events, whole) = gateway.client.open("GET", path, &headers, "").await.rest().await;
    assert!(
        whole && events.contains("abcd") && events.contains("Large") && events.contains("event: end"),
        "{events}"
    );
}

/// As a caller who has logged in.
fn known<T>(bearer: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", bearer.parse().unwrap());
    request
}
