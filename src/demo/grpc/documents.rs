//! `voicehelper.documents.v1.Documents`: all four kinds of method.

use super::caller::{Caller, now, page};
use super::faults;
use super::proto::documents::document_event::Kind;
use super::proto::documents::documents_server::Documents;
use super::proto::documents::edit_request::Edit;
use super::proto::documents::{
    CreateDocumentRequest, DeleteDocumentRequest, Document, DocumentEvent, EditRequest, EditResponse,
    GetDocumentRequest, ListDocumentsRequest, ListDocumentsResponse, Status as State, UpdateDocumentRequest,
    UploadChunk, WatchDocumentsRequest,
};
use futures_util::stream::{self, BoxStream, StreamExt as _};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::broadcast;
use tonic::{Code, Request, Response, Status, Streaming};
use uuid::Uuid;

/// Bytes of a document's content at most.
const MAX_CONTENT: usize = 1 << 20;
/// Documents of one caller at most.
const MAX_DOCUMENTS: usize = 1000;
/// Events a slow watcher may lag behind.
const BACKLOG: usize = 256;

/// The service.
#[derive(Debug, Clone)]
pub(super) struct DocumentsService {
    shelf: Arc<Shelf>,
}

#[derive(Debug)]
struct Shelf {
    /// By owner, then by id; UUIDs of version 7 stand in the order of time.
    documents: Mutex<BTreeMap<Caller, BTreeMap<String, Document>>>,
    events: broadcast::Sender<(Caller, DocumentEvent)>,
}

impl Default for DocumentsService {
    fn default() -> Self {
        let (events, _) = broadcast::channel(BACKLOG);
        Self { shelf: Arc::new(Shelf { documents: Mutex::default(), events }) }
    }
}

impl DocumentsService {
    /// Watches under way.
    pub(super) fn watchers(&self) -> usize {
        self.shelf.events.receiver_count()
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Documents for DocumentsService {
    type WatchStream = BoxStream<'static, Result<DocumentEvent, Status>>;
    type EditStream = BoxStream<'static, Result<EditResponse, Status>>;

    async fn create(&self, request: Request<CreateDocumentRequest>) -> Answer<Document> {
        let owner = Caller::of(&request)?;
        let CreateDocumentRequest { title, content, tags, metadata } = request.into_inner();
        self.shelf
            .add(owner, Document { title, content, tags, metadata, ..Default::default() })
            .map(Response::new)
    }

    async fn get(&self, request: Request<GetDocumentRequest>) -> Answer<Document> {
        let owner = Caller::of(&request)?;
        let id = &request.get_ref().id;
        let shelf = self.shelf.lock();
        let found = shelf.get(&owner).and_then(|documents| documents.get(id)).cloned();
        found.map(Response::new).ok_or_else(|| faults::not_found("document", id))
    }

    async fn list(&self, request: Request<ListDocumentsRequest>) -> Answer<ListDocumentsResponse> {
        let owner = Caller::of(&request)?;
        let wanted = request.into_inner();
        let shelf = self.shelf.lock();
        let all = shelf.get(&owner).into_iter().flat_map(|documents| documents.values().rev());
        let matching = all.filter(|document| {
            wanted.tags.iter().all(|tag| document.tags.contains(tag))
                && (wanted.status == State::Unspecified as i32 || wanted.status == document.status)
        });
        let (documents, next) =
            page(matching.cloned(), wanted.limit, &wanted.cursor, |document| &document.id)?;
        Ok(Response::new(ListDocumentsResponse { documents, next_cursor: next.unwrap_or_default() }))
    }

    async fn update(&self, request: Request<UpdateDocumentRequest>) -> Answer<Document> {
        let owner = Caller::of(&request)?;
        let UpdateDocumentRequest { id, title, content, tags, metadata, if_revision } = request.into_inner();
        let changed = self.shelf.change(&owner, &id, |document| {
            if if_revision.is_some_and(|wanted| wanted != document.revision) {
                let text = "the document was changed meanwhile: read it again";
                return Err(faults::because(Code::FailedPrecondition, "REVISION_CHANGED", text));
            }
            title.into_iter().for_each(|title| document.title = title);
            content.into_iter().for_each(|content| document.content = content);
            metadata.into_iter().for_each(|metadata| document.metadata = Some(metadata));
            if !tags.is_empty() {
                document.tags = tags;
            }
            Ok(())
        })?;
        Ok(Response::new(changed))
    }

    async fn delete(&self, request: Request<DeleteDocumentRequest>) -> Answer<()> {
        let owner = Caller::of(&request)?;
        let id = &request.get_ref().id;
        let gone = self.shelf.lock().get_mut(&owner).and_then(|documents| documents.remove(id));
        let gone = gone.ok_or_else(|| faults::not_found("document", id))?;
        self.shelf.tell(&owner, Kind::Deleted, gone);
        Ok(Response::new(()))
    }

    async fn watch(&self, request: Request<WatchDocumentsRequest>) -> Answer<Self::WatchStream> {
        let owner = Caller::of(&request)?;
        let WatchDocumentsRequest { existing, max_events } = request.into_inner();
        let max = match max_events {
            0 => usize::MAX,
            count => usize::try_from(count).map_err(|_| faults::invalid("max_events", "0 or more"))?,
        };
        let events = self.shelf.events.subscribe();
        let first: Vec<_> = match existing {
            true => self.shelf.lock().get(&owner).into_iter().flat_map(|all| all.values().cloned()).collect(),
            false => Vec::new(),
        };
        let first = first.into_iter().map(|document| event(Kind::Exists, document)).map(Ok);
        let later = stream::unfold((events, owner), |(mut events, owner)| async {
            loop {
                match events.recv().await {
                    Ok((whose, event)) if whose == owner => return Some((Ok(event), (events, owner))),
                    Ok(_) => {}
                    Err(broadcast::error::RecvError::Lagged(missed)) => {
                        let text = format!("{missed} events were missed: watch again");
                        return Some((Err(Status::data_loss(text)), (events, owner)));
                    }
                    Err(broadcast::error::RecvError::Closed) => return None,
                }
            }
        });
        Ok(Response::new(stream::iter(first).chain(later).take(max).boxed()))
    }

    async fn upload(&self, request: Request<Streaming<UploadChunk>>) -> Answer<Document> {
        let owner = Caller::of(&request)?;
        let mut pieces = request.into_inner();
        let (mut title, mut data) = (String::new(), Vec::new());
        while let Some(piece) = pieces.message().await? {
            if title.is_empty() {
                title = piece.title;
            }
            data.extend_from_slice(&piece.data);
            if data.len() > MAX_CONTENT {
                return Err(faults::invalid("data", "at most 1 MiB in all"));
            }
        }
        let content = String::from_utf8(data).map_err(|_| faults::invalid("data", "UTF-8"))?;
        self.shelf.add(owner, Document { title, content, ..Default::default() }).map(Response::new)
    }

    async fn edit(&self, request: Request<Streaming<EditRequest>>) -> Answer<Self::EditStream> {
        let owner = Caller::of(&request)?;
        let start = (request.into_inner(), self.shelf.clone(), owner, String::new());
        let answers = stream::try_unfold(start, |(mut edits, shelf, owner, mut id)| async {
            let Some(edit) = edits.message().await? else { return Ok(None) };
            if id.is_empty() {
                id = edit.id;
            }
            let changed = shelf.change(&owner, &id, |document| {
                match edit.edit {
                    Some(Edit::Append(text)) => document.content.push_str(&text),
                    Some(Edit::Replace(text)) => document.content = text,
                    None => return Err(faults::invalid("edit", "`append` or `replace`")),
                }
                Ok(())
            })?;
            let answer = EditResponse { revision: changed.revision, content: changed.content };
            Ok(Some((answer, (edits, shelf, owner, id))))
        });
        Ok(Response::new(answers.boxed()))
    }
}

impl Shelf {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Caller, BTreeMap<String, Document>>> {
        self.documents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, owner: Caller, document: Document) -> Result<Document, Status> {
        let made = Document {
            id: Uuid::now_v7().to_string(),
            size: document.content.len() as i64,
            status: State::Ready as i32,
            created_at: Some(now()),
            updated_at: Some(now()),
            revision: 1,
            ..document
        };
        sound(&made)?;
        let mut shelf = self.lock();
        let documents = shelf.entry(owner.clone()).or_default();
        if documents.len() >= MAX_DOCUMENTS {
            return Err(faults::later("you have as many documents as there may be: delete some", 60));
        }
        documents.insert(made.id.clone(), made.clone());
        drop(shelf);
        self.tell(&owner, Kind::Created, made.clone());
        Ok(made)
    }

    fn change(
        &self,
        owner: &Caller,
        id: &str,
        change: impl FnOnce(&mut Document) -> Result<(), Status>,
    ) -> Result<Document, Status> {
        let mut shelf = self.lock();
        let kept = shelf.get_mut(owner).and_then(|documents| documents.get_mut(id));
        let kept = kept.ok_or_else(|| faults::not_found("document", id))?;
        let mut changed = kept.clone();
        change(&mut changed)?;
        sound(&changed)?;
        changed.size = changed.content.len() as i64;
        changed.updated_at = Some(now());
        changed.revision += 1;
        kept.clone_from(&changed);
        drop(shelf);
        self.tell(owner, Kind::Updated, changed.clone());
        Ok(changed)
    }

    fn tell(&self, owner: &Caller, kind: Kind, document: Document) {
        // Nobody watching is fine.
        let _ = self.events.send((owner.clone(), event(kind, document)));
    }
}

fn event(kind: Kind, document: Document) -> DocumentEvent {
    DocumentEvent { kind: kind as i32, document: Some(document) }
}

fn sound(document: &Document) -> Result<(), Status> {
    let mut faults = Vec::new();
    if !(1..=200).contains(&document.title.chars().count()) {
        faults.push(("title", "1 to 200 characters"));
    }
    if document.content.len() > MAX_CONTENT {
        faults.push(("content", "at most 1 MiB"));
    }
    if document.tags.len() > 20 {
        faults.push(("tags", "at most 20"));
    }
    let empty = document.tags.iter().position(String::is_empty).map(|at| format!("tags[{at}]"));
    if let Some(empty) = &empty {
        faults.push((empty, "not empty"));
    }
    if faults.is_empty() { Ok(()) } else { Err(self::faults::invalid_all(&faults)) }
}
