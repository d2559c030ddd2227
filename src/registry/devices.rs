//! What a core holds of the devices it owns: who they belong to, whether they may send, and where their data goes.
