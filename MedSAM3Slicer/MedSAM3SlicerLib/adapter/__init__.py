"""Between MRML nodes and the core: volumes, boxes, segments, sequences and the subject hierarchy.

Everything here takes the scene, the nodes and the logics as arguments and needs no application, so that it runs on
``slicer-core`` as well as in Slicer. World coordinates are RAS in mm; node coordinates are RAS below the node's parent
transform; ijk are voxel indices (column, row, slice).
"""
