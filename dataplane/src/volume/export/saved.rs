//! What an export's engines know, as plain data.

use super::Export;
use outboard_rdma::nvmf::LoadError;
use outboard_rdma::nvmf::target::Target;

/// The engines of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedEngines {
    subsystem: Vec<u8>,
    /// One per place for a connection.
    targets: Vec<Vec<u8>>,
}

impl Export {
    /// Controllers, epochs and connections; their sockets, data and commands are the export's.
    pub fn save_engines(&self) -> SavedEngines {
        let targets = self.connections.iter().map(|connection| connection.target.save());
        SavedEngines { subsystem: self.subsystem.save(), targets: targets.collect() }
    }

    /// Goes on with what [`save_engines`](Self::save_engines) gave, with the same connections.
    pub fn load_engines(&mut self, saved: &SavedEngines) -> Result<(), LoadError> {
        self.subsystem.load(&saved.subsystem)?;
        for (connection, saved) in self.connections.iter_mut().zip(&saved.targets) {
            connection.target = Target::load(saved, &self.subsystem)?;
        }
        Ok(())
    }
}
