# SPDX-License-Identifier: Apache-2.0
"""Where arrays live: a mesh, and a table from logical axes to mesh axes."""

from jaxpost.shard.memory import free as free
from jaxpost.shard.mesh import MeshShape as MeshShape
from jaxpost.shard.mesh import device_kind as device_kind
from jaxpost.shard.mesh import make_mesh as make_mesh
from jaxpost.shard.mesh import on_one_device as on_one_device
from jaxpost.shard.mesh import platform as platform
from jaxpost.shard.rules import RULES as RULES
from jaxpost.shard.rules import Rules as Rules
from jaxpost.shard.rules import constrain as constrain
from jaxpost.shard.rules import on_each as on_each
from jaxpost.shard.rules import rows as rows
from jaxpost.shard.rules import shardings as shardings
from jaxpost.shard.rules import ways as ways
