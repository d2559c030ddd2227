//! The broker's mesh and its bounds, as they are: `src/mesh` has the models.
#![allow(dead_code)]

#[path = "../../../src/limits.rs"]
pub mod limits;
#[path = "../../../src/mesh/mod.rs"]
pub mod mesh;

/// What the mesh knows of its shards: the two queues of a pair of cores.
pub mod shard {
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
    #[repr(u8)]
    pub enum Lane {
        ToOwner = 0,
        ToHome = 1,
    }

    impl Lane {
        pub const ALL: [Lane; 2] = [Lane::ToOwner, Lane::ToHome];
    }
}
