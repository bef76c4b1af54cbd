import sys, os, time, json
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from contender import *; from workloads import *; from guests import Guests; from converge import *
class Merge(Samepage):
    name="merge"
    def prepare(self, p):
        Nothing.prepare(self,p)
        self.socket = os.path.join(p.folder, "broker.sock"); self.env = {"SAMEPAGE_SOCKET": self.socket}
        self.broker = p.start([os.path.join(self.build, "samepaged"), "--socket", self.socket], log="broker.log")
        until(5, "x", lambda: os.path.exists(self.socket))
    def go(self): self.tell("merge","--all")
B="/tmp/bC3m"; T="/tmp/bC3/bench"; IMG=os.environ.get("IMG")
W={"set": Set(4,256), "seti": Set(2,64), "g3": Guests(IMG,3,512), "w8i": Workers(8,False,False), "w8s": Workers(8,False,True),
 "w8f": Workers(8,True,False), "w50f": Workers(50,True,False),"w24s": Workers(24,False,True), "n4": Node(4,False), "n4s": Node(4,True), "r": Redis(3,60000)}
C={"ksmd": Ksm(), "advisor": Advisor(), "nothing": Nothing(), "merge": Merge(B), "samepage": Samepage(B)}
def show(r):
    f=r.final
    t=r.reaches(0.9*f)
    print(f"{r.workload} | {r.contender}: saved {f/2**20:.1f} MiB; 90% of own at {r.seconds(t):.2f} s, cpu {r.cpu(t):.2f} (ksmd {t.ksmd-r.rows[0].ksmd:.2f} broker {t.broker-r.rows[0].broker:.2f} engines {t.engines-r.rows[0].engines:.2f}/{t.engine_count}); total {r.seconds(r.rows[-1]):.1f} s cpu {r.cpu(r.rows[-1]):.2f}; group {r.group_cpu:.2f}; machine {(r.rows[0].machine-r.rows[-1].machine)/2**20:.1f} MiB; sampling {r.rows[-1].sampling-r.rows[0].sampling:.2f}")
    b,a=r.before,r.after
    print("   ", {k:(b[k],a[k]) for k in b if k!="runs"}, a["runs"], "mem", {k: (r.rows[-1].memory[k]-r.rows[0].memory[k])>>10 for k in r.rows[0].memory}, "pings ms", [round(x[1]*1e3,1) for x in r.pings][-5:], {k:v for k,v in r.counters.items() if k!="status"}, flush=True)
if __name__=="__main__":
    for w in sys.argv[1].split(","):
        for c in sys.argv[2].split(","):
            show(converge(T, W[w], C[c], Limits(os.environ.get("Q")=="1")))
