----------------------------- MODULE ApicReload -----------------------------
(* The same guarded-atomic-action system as apic_reload.pml, step for step.   *)
EXTENDS Naturals, TLC
CONSTANTS V,       \* the vCPUs, a set of model values
          NI,      \* number of page migrations
          VARIANT  \* 0 buggy, 1 request after the PTE is gone, 2 seq/in_progress retry
NONE == 15
Symm == Permutations(V)
VARIABLES pte, ptl, inprog, seq, nfreed, mpc, vpc, req, inguest, vmcs, snp, got
vars == <<pte, ptl, inprog, seq, nfreed, mpc, vpc, req, inguest, vmcs, snp, got>>
sh   == <<pte, ptl, inprog, seq, nfreed>>
vm   == <<vpc, req, inguest, vmcs, snp, got>>

Init == /\ pte = 0 /\ ptl = "free" /\ inprog = 0 /\ seq = 0 /\ nfreed = 0 /\ mpc = "start"
        /\ vpc = [v \in V |-> "top"] /\ req = [v \in V |-> 0] /\ inguest = [v \in V |-> 0]
        /\ vmcs = [v \in V |-> 0] /\ snp = [v \in V |-> 0] /\ got = [v \in V |-> 0]

ReqAll == req' = [v \in V |-> 1]
Kicked == \A v \in V : ~(inguest[v] = 1 /\ req[v] = 1)
UnV    == UNCHANGED <<vpc, inguest, vmcs, snp, got>>

MStart == /\ mpc = "start" /\ nfreed < NI /\ inprog' = 1
          /\ IF VARIANT = 1 THEN mpc' = "lock1" /\ UNCHANGED req ELSE mpc' = "kick" /\ ReqAll
          /\ UNCHANGED <<pte, ptl, seq, nfreed>> /\ UnV
MKick  == /\ mpc = "kick" /\ Kicked /\ mpc' = "lock1" /\ UNCHANGED <<sh, vm>>
MLock1 == /\ mpc = "lock1" /\ ptl = "free" /\ ptl' = "mm" /\ mpc' = "clear" /\ UNCHANGED <<pte, inprog, seq, nfreed, vm>>
MClear == /\ mpc = "clear" /\ pte' = NONE /\ mpc' = "unl1" /\ UNCHANGED <<ptl, inprog, seq, nfreed, vm>>
MUnl1  == /\ mpc = "unl1" /\ ptl' = "free" /\ mpc' = (IF VARIANT = 1 THEN "req" ELSE "lock2") /\ UNCHANGED <<pte, inprog, seq, nfreed, vm>>
MReq   == /\ mpc = "req" /\ ReqAll /\ mpc' = "kick2" /\ UNCHANGED sh /\ UnV
MKick2 == /\ mpc = "kick2" /\ Kicked /\ mpc' = "lock2" /\ UNCHANGED <<sh, vm>>
MLock2 == /\ mpc = "lock2" /\ ptl = "free" /\ ptl' = "mm" /\ mpc' = "map" /\ UNCHANGED <<pte, inprog, seq, nfreed, vm>>
MMap   == /\ mpc = "map" /\ pte' = nfreed + 1 /\ mpc' = "unl2" /\ UNCHANGED <<ptl, inprog, seq, nfreed, vm>>
MUnl2  == /\ mpc = "unl2" /\ ptl' = "free" /\ mpc' = "rend" /\ UNCHANGED <<pte, inprog, seq, nfreed, vm>>
MEnd   == /\ mpc = "rend" /\ seq' = seq + 1 /\ inprog' = 0 /\ mpc' = "free" /\ UNCHANGED <<pte, ptl, nfreed, vm>>
MFree  == /\ mpc = "free" /\ nfreed' = nfreed + 1 /\ mpc' = "start" /\ UNCHANGED <<pte, ptl, inprog, seq, vm>>

Go(v, a, b) == vpc[v] = a /\ vpc' = [vpc EXCEPT ![v] = b]
VReq(v)  == /\ Go(v, "top", "snap") /\ req[v] = 1 /\ req' = [req EXCEPT ![v] = 0]
            /\ UNCHANGED <<sh, mpc, inguest, vmcs, snp, got>>
VSnap(v) == /\ Go(v, "snap", "lock") /\ snp' = [snp EXCEPT ![v] = seq] /\ UNCHANGED <<sh, mpc, req, inguest, vmcs, got>>
VLock(v) == /\ Go(v, "lock", "gup") /\ ptl = "free" /\ pte # NONE /\ ptl' = v
            /\ UNCHANGED <<pte, inprog, seq, nfreed, mpc, req, inguest, vmcs, snp, got>>
VGup(v)  == /\ Go(v, "gup", "unl") /\ got' = [got EXCEPT ![v] = pte] /\ UNCHANGED <<sh, mpc, req, inguest, vmcs, snp>>
VUnl(v)  == /\ Go(v, "unl", "commit") /\ ptl' = "free" /\ UNCHANGED <<pte, inprog, seq, nfreed, mpc, req, inguest, vmcs, snp, got>>
Retry(v) == VARIANT = 2 /\ (inprog = 1 \/ seq # snp[v])
VCommit(v) == /\ Go(v, "commit", "top")
              /\ IF Retry(v) THEN req' = [req EXCEPT ![v] = 1] /\ UNCHANGED vmcs
                             ELSE vmcs' = [vmcs EXCEPT ![v] = got[v]] /\ UNCHANGED req
              /\ snp' = [snp EXCEPT ![v] = 0] /\ got' = [got EXCEPT ![v] = 0]
              /\ UNCHANGED <<sh, mpc, inguest>>
VEnter(v) == /\ Go(v, "top", "guest") /\ req[v] = 0 /\ inguest' = [inguest EXCEPT ![v] = 1] /\ UNCHANGED <<sh, mpc, req, vmcs, snp, got>>
VExit(v)  == /\ Go(v, "guest", "top") /\ inguest' = [inguest EXCEPT ![v] = 0] /\ UNCHANGED <<sh, mpc, req, vmcs, snp, got>>

Next == \/ MStart \/ MKick \/ MLock1 \/ MClear \/ MUnl1 \/ MReq \/ MKick2 \/ MLock2 \/ MMap \/ MUnl2 \/ MEnd \/ MFree
        \/ \E v \in V : VReq(v) \/ VSnap(v) \/ VLock(v) \/ VGup(v) \/ VUnl(v) \/ VCommit(v) \/ VEnter(v) \/ VExit(v)
Spec == Init /\ [][Next]_vars
NoUseAfterFree == \A v \in V : inguest[v] = 1 => vmcs[v] >= nfreed
=============================================================================
