//! Who this disk is. A voter is a node id *and* a directory id: a wiped disk under an old id is another voter, and must
//! never be taken for the old one, which promised votes and acknowledged entries that this disk knows nothing of.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock};

use quorate_client::world;
use quorate_log::durable;
use quorate_metadata::ids::{ClusterId, ControllerId, DirectoryId};
use serde::{Deserialize, Serialize};

use super::RaftError;
use super::floor::Floor;
use super::store::Store;

const FILE: &str = "quorate.meta";
/// The second version has a floor and `replacement`.
const VERSION: u32 = 2;
const VERSION_LOWEST: u32 = 1;

/// What `quorate.meta` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    pub node: ControllerId,
    pub directory: DirectoryId,
    /// Unknown until the first contact with a cluster.
    pub cluster: Option<ClusterId>,
    /// An empty disk that waits until `quorum replace` makes it the disk of its voter.
    pub replacement: bool,
    /// What the rest of the disk must hold.
    pub floor: Floor,
}

impl Identity {
    /// A new disk.
    pub fn new(node: ControllerId, cluster: Option<ClusterId>) -> Self {
        Self { node, directory: DirectoryId::new(world::uuid()), cluster, replacement: false, floor: Floor::default() }
    }
}

/// What `format` wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Formatted {
    pub node: ControllerId,
    pub directory: DirectoryId,
    pub cluster: Option<ClusterId>,
}

/// Makes `data` an empty disk of `node`. Refuses a directory that already has a name, and for a replacement one that holds
/// anything.
pub fn format(
    data: &Path,
    node: ControllerId,
    cluster: Option<ClusterId>,
    replacement: bool,
) -> Result<Formatted, RaftError> {
    if let Some(found) = read(data)? {
        return Err(RaftError::AlreadyFormatted { data: data.into(), node: found.node, directory: found.directory });
    }
    if replacement && !is_empty(data).map_err(RaftError::io(format!("read {data:?}")))? {
        return Err(RaftError::NotEmpty { data: data.into() });
    }
    let identity = Identity { replacement, ..Identity::new(node, cluster) };
    write(data, &identity)?;
    Ok(Formatted { node, directory: identity.directory, cluster })
}

fn is_empty(directory: &Path) -> io::Result<bool> {
    match fs::read_dir(directory) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

/// The directory id of a disk that holds no log: that of a node without a controller.
pub fn identify(data: &Path, node: ControllerId, auto_format: bool) -> Result<DirectoryId, RaftError> {
    match read(data)? {
        Some(found) if found.node == node => Ok(found.directory),
        Some(found) => Err(RaftError::ForeignDirectory { data: data.into(), expected: node, found: found.node }),
        None if auto_format => Ok(format(data, node, None, false)?.directory),
        None => Err(RaftError::NotFormatted { data: data.into() }),
    }
}

/// Joins `cluster` with a disk that holds no log, unless it belongs to another one.
pub fn join(data: &Path, node: ControllerId, cluster: ClusterId) -> Result<(), RaftError> {
    let identity = read(data)?.ok_or_else(|| RaftError::NotFormatted { data: data.into() })?;
    match identity.cluster {
        Some(found) if found == cluster => Ok(()),
        Some(found) => {
            let reason = format!("{data:?} of node {node} is of cluster {found}, the controllers are of {cluster}");
            Err(RaftError::InconsistentClusterId(reason))
        }
        None => write(data, &Identity { cluster: Some(cluster), ..identity }),
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    node: i32,
    directory: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cluster: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    replacement: bool,
    /// Absent before the first start of the voter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    floor: Option<FloorFields>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FloorFields {
    generation: u64,
    term: u64,
    committed_end: u64,
}

/// None when there is no such file: the directory is not formatted.
pub fn read(data: &Path) -> Result<Option<Identity>, RaftError> {
    let path = data.join(FILE);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(RaftError::io(format!("read {path:?}"))(error)),
    };
    let corrupt = |reason: String| RaftError::Corrupt { file: path.clone(), offset: 0, reason };
    let file: File = toml::from_str(&text).map_err(|error| corrupt(error.to_string()))?;
    if !(VERSION_LOWEST..=VERSION).contains(&file.version) {
        return Err(corrupt(format!("version {} is not known to this release", file.version)));
    }
    let directory = file.directory.parse().map_err(|error| corrupt(format!("directory: {error}")))?;
    let cluster =
        file.cluster.map(|id| id.parse()).transpose().map_err(|error| corrupt(format!("cluster: {error}")))?;
    let floor = file.floor.map_or_else(Floor::default, |FloorFields { generation, term, committed_end }| Floor {
        generation,
        term,
        committed_end,
    });
    Ok(Some(Identity { node: ControllerId::new(file.node), directory, cluster, replacement: file.replacement, floor }))
}

pub fn write(data: &Path, identity: &Identity) -> Result<(), RaftError> {
    let file = File {
        version: VERSION,
        node: identity.node.get(),
        directory: identity.directory.to_string(),
        cluster: identity.cluster.map(|id| id.to_string()),
        replacement: identity.replacement,
        floor: (identity.floor != Floor::default())
            .then_some(identity.floor)
            .map(|Floor { generation, term, committed_end }| FloorFields { generation, term, committed_end }),
    };
    let text = toml::to_string(&file).expect("plain fields serialize");
    let path = data.join(FILE);
    durable::create_directory(data)
        .and_then(|()| durable::replace(&path, text.as_bytes()))
        .map_err(RaftError::io(format!("write {path:?}")))
}

/// The name of this running voter, shared by all who put it on calls or check it.
#[derive(Clone)]
pub struct LocalVoter {
    pub node: ControllerId,
    pub directory: DirectoryId,
    data: PathBuf,
    identity: Arc<RwLock<Identity>>,
    /// Held while it is written, which may take long: the identity itself can be read meanwhile.
    saving: Arc<Mutex<()>>,
    store: Arc<dyn Store>,
}

impl LocalVoter {
    /// Reads who this disk is, or formats it where that is allowed.
    pub fn load(
        store: Arc<dyn Store>,
        node: ControllerId,
        data: PathBuf,
        configured: Option<ClusterId>,
        auto_format: bool,
    ) -> Result<Self, RaftError> {
        let stored = store.identity()?;
        let mut identity = match stored {
            Some(identity) => identity,
            None if auto_format => Identity::new(node, configured),
            None => return Err(RaftError::NotFormatted { data }),
        };
        if identity.node != node {
            return Err(RaftError::ForeignDirectory { data, expected: node, found: identity.node });
        }
        match (identity.cluster, configured) {
            (Some(ours), Some(theirs)) if ours != theirs => {
                let reason = format!("the configuration names cluster {theirs}, {data:?} is of cluster {ours}");
                return Err(RaftError::InconsistentClusterId(reason));
            }
            (None, Some(_)) => identity.cluster = configured,
            _ => {}
        }
        // A disk that is full starts as it is.
        if stored != Some(identity) {
            store.save_identity(&identity)?;
        }
        let (directory, identity) = (identity.directory, Arc::new(RwLock::new(identity)));
        Ok(Self { node, directory, data, identity, saving: Arc::default(), store })
    }

    fn identity(&self) -> Identity {
        *self.identity.read().expect("no holder panics")
    }

    pub fn cluster(&self) -> Option<ClusterId> {
        self.identity().cluster
    }

    pub fn is_replacement(&self) -> bool {
        self.identity().replacement
    }

    pub fn floor(&self) -> Floor {
        self.identity().floor
    }

    /// The directory of the disk, for messages.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Writes a higher floor, durably.
    pub fn raise_floor(&self, raise: impl FnOnce(Floor) -> Floor) -> Result<(), RaftError> {
        self.save(|identity| Identity { floor: raise(identity.floor), ..identity })
    }

    fn save(&self, change: impl FnOnce(Identity) -> Identity) -> Result<(), RaftError> {
        let _saving = self.saving.lock().expect("no holder panics");
        let (before, after) = (self.identity(), change(self.identity()));
        if before != after {
            self.store.save_identity(&after)?;
            *self.identity.write().expect("no holder panics") = after;
        }
        Ok(())
    }

    /// Joins `cluster`, durably, unless this disk already belongs to another one.
    pub fn adopt(&self, cluster: ClusterId) -> Result<(), RaftError> {
        let joins = self.cluster().is_none();
        if joins {
            self.save(|identity| Identity { cluster: identity.cluster.or(Some(cluster)), ..identity })?;
        }
        match self.cluster() {
            // Another call may have come first.
            Some(ours) if ours != cluster => return Err(RaftError::cluster_ids(cluster, ours)),
            _ if joins => tracing::info!(cluster = %cluster, "joined the cluster"),
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_formatted_once() {
        let data = tempfile::tempdir().unwrap();
        let first = format(data.path(), ControllerId::new(3), None, false).unwrap();
        let again = format(data.path(), ControllerId::new(3), None, false);
        assert!(matches!(again, Err(RaftError::AlreadyFormatted { .. })));
        assert_eq!(read(data.path()).unwrap().unwrap().directory, first.directory);
    }

    #[test]
    fn a_replacement_is_formatted_on_an_empty_directory() {
        let data = tempfile::tempdir().unwrap();
        fs::create_dir(data.path().join("raft")).unwrap();
        let refused = format(data.path(), ControllerId::new(3), None, true);
        assert!(matches!(refused, Err(RaftError::NotEmpty { .. })));
        assert_eq!(read(data.path()).unwrap(), None);
        let absent = data.path().join("new");
        format(&absent, ControllerId::new(3), None, true).unwrap();
        assert!(read(&absent).unwrap().unwrap().replacement);
    }

    #[test]
    fn a_file_of_the_first_version_has_no_floor() {
        let data = tempfile::tempdir().unwrap();
        let identity = Identity::new(ControllerId::new(3), None);
        let text = format!("version = 1\nnode = 3\ndirectory = \"{}\"\n", identity.directory);
        fs::write(data.path().join(FILE), text).unwrap();
        assert_eq!(read(data.path()).unwrap(), Some(identity));
        let raised = Identity { floor: Floor { generation: 1, term: 2, committed_end: 3 }, ..identity };
        write(data.path(), &raised).unwrap();
        assert_eq!(read(data.path()).unwrap(), Some(raised));
    }

    #[test]
    fn a_start_writes_no_identity_that_is_there_already() {
        let data = tempfile::tempdir().unwrap();
        let (node, cluster) = (ControllerId::new(3), ClusterId::from_bytes([7; 16]));
        format(data.path(), node, Some(cluster), false).unwrap();
        let file = || std::os::unix::fs::MetadataExt::ino(&fs::metadata(data.path().join(FILE)).unwrap());
        let before = file();
        let load = |configured| {
            let store = Arc::new(super::super::RocksStore::new(data.path()));
            LocalVoter::load(store, node, data.path().to_owned(), configured, false)
        };
        assert_eq!(load(None).unwrap().cluster(), Some(cluster));
        assert_eq!(load(Some(cluster)).unwrap().cluster(), Some(cluster));
        assert_eq!(file(), before, "a disk that is full could not be written");
    }

    #[test]
    fn a_damaged_file_is_refused_by_name() {
        let data = tempfile::tempdir().unwrap();
        fs::write(data.path().join(FILE), "version = 1\nnode = ").unwrap();
        let error = read(data.path()).unwrap_err().to_string();
        assert!(error.contains("quorate.meta"), "{error}");
    }
}
