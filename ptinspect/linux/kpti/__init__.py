"""The kernel's rewrite of its own tables: its code, how far it is, and where the guest stands.

`code` recognises the algorithm from instructions, `running_code` finds it in a guest. `position` tells from
registers where the walk stands, `marks` from the tables; `state` concludes from both, and from `decision`,
whether the kernel rewrites at all. `progress` counts what is left; `stores` are those that were recorded;
`verdict` judges how it went.
"""
